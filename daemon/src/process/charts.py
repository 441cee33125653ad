"""Runs a program and tells the daemon of the figures that it shows with matplotlib, or leaves open at its end.

The daemon puts a call of `run` below this text. Charts are lines of JSON on a descriptor of their own, which no child process gets.
Whatever goes wrong here must not be seen by the program: a chart is then poorer, or missing.
"""


def run(descriptor, code):
    import builtins
    import os
    import sys
    import types

    os.set_inheritable(descriptor, False)
    charts = Charts(descriptor, os.getpid())
    sys.meta_path.insert(0, Hooks(charts))
    main = types.ModuleType("__main__")
    main.__builtins__ = builtins
    ours = sys.modules["__main__"]
    sys.modules["__main__"] = main
    try:
        try:
            exec(compile(code, "<stdin>", "exec", dont_inherit=True), main.__dict__)
        finally:
            charts.take_open_figures(lambda figure: not getattr(figure, "_was_shown", False))
    except SystemExit:
        raise
    except BaseException as exception:
        frames = exception.__traceback__
        while frames is not None and frames.tb_frame.f_globals is ours.__dict__:
            frames = frames.tb_next
        # As the interpreter does it, without our own frames.
        sys.excepthook(type(exception), exception.with_traceback(frames), frames)
        sys.exit(130 if isinstance(exception, KeyboardInterrupt) else 1)


class Hooks:
    """Changes modules of matplotlib when, and if, they are imported."""

    def __init__(self, charts):
        self.after = {
            "matplotlib": charts.without_display,
            "matplotlib.figure": charts.watch_figures,
            "matplotlib.axes._axes": charts.watch_box_plots,
            "matplotlib.pyplot": charts.watch_show,
        }

        self.is_looking = False

    def find_spec(self, name, path=None, target=None):
        # A spec is also asked for by who only wants to know whether the module is there.
        if self.is_looking or name not in self.after:
            return None
        import sys

        self.is_looking = True
        try:
            found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
            spec = next((spec for spec in found if spec is not None), None)
        finally:
            self.is_looking = False
        quietly(self.change_afterwards, spec, self.after[name])
        return spec

    def change_afterwards(self, spec, change):
        execute = spec.loader.exec_module

        def execute_and_change(module):
            execute(module)
            quietly(change, module)

        spec.loader.exec_module = execute_and_change


def quietly(work, *args):
    try:
        return work(*args)
    except Exception:
        return None


class Charts:
    def __init__(self, descriptor, pid):
        self.descriptor = descriptor
        self.pid = pid
        self.pyplot = None

    def without_display(self, matplotlib):
        # Not by the environment, which child processes would see.
        matplotlib.rcParams["backend"] = "agg"

    def watch_figures(self, module):
        def show(figure, warn=True):
            quietly(self.take, figure)
            figure._was_shown = True

        module.Figure.show = show

    def watch_box_plots(self, module):
        """A box plot is lines like any other once it is drawn; its numbers are known only here."""
        draw = module.Axes.bxp

        def bxp(axes, bxpstats, *args, **kwargs):
            drawn = draw(axes, bxpstats, *args, **kwargs)
            boxes = axes.__dict__.setdefault("_shown_boxes", [])
            quietly(lambda: boxes.extend(zip(bxpstats, drawn["medians"])))
            return drawn

        bxp.__doc__, bxp.__name__ = draw.__doc__, draw.__name__
        module.Axes.bxp = bxp

    def watch_show(self, pyplot):
        def show(*args, **kwargs):
            self.take_open_figures()

        show.__doc__ = pyplot.show.__doc__
        self.pyplot = pyplot
        pyplot.show = show

    def take_open_figures(self, is_wanted=lambda figure: True):
        import os

        if self.pyplot is None or os.getpid() != self.pid:
            return
        for number in quietly(self.pyplot.get_fignums) or []:
            figure = quietly(self.pyplot.figure, number)
            if figure is not None and is_wanted(figure):
                quietly(self.take, figure)
            # As a window that was looked at and closed.
            quietly(self.pyplot.close, number)

    def take(self, figure):
        import json
        import os

        chart = chart_of_figure(figure)
        if chart is None or os.getpid() != self.pid:
            return
        rest = json.dumps(chart, allow_nan=False).encode("ascii") + b"\n"
        while rest:
            rest = rest[os.write(self.descriptor, rest):]


POINTS_MAX = 20000
ELEMENTS_MAX = 1000
TICKS_MAX = 1000
# Each part of a composite chart is drawn again for its own picture.
PICTURES_MAX = 16


def chart_of_figure(figure):
    parts = [axes for axes in figure.get_axes() if axes.get_visible() and axes.get_label() != "<colorbar>"]
    if not parts and not (figure.texts or figure.images or figure.lines or figure.patches):
        return None
    picture = png(figure)
    title = quietly(lambda: figure._suptitle.get_text()) or ""
    if len(parts) == 1:
        chart = quietly(chart_of_axes, parts[0]) or {"type": "unknown", "elements": []}
        chart["title"] = chart.get("title") or title
    elif parts:
        elements = [quietly(chart_of_axes, axes) or {"type": "unknown"} for axes in parts[:ELEMENTS_MAX]]
        for axes, element in list(zip(parts, elements))[:PICTURES_MAX]:
            element["png"] = quietly(png, figure, axes)
        chart = {"type": "composite_chart", "title": title, "elements": elements}
    else:
        chart = {"type": "unknown", "title": title, "elements": []}
    chart["png"] = picture
    return chart


def png(figure, axes=None):
    import base64
    import io

    box = None
    if axes is not None:
        tight = axes.get_tightbbox(figure.canvas.get_renderer())
        box = tight.transformed(figure.dpi_scale_trans.inverted()).padded(0.05)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches=box)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def chart_of_axes(axes):
    chart = {"title": axes.get_title(), "x_label": axes.get_xlabel(), "y_label": axes.get_ylabel()}
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        quietly(describe_axis, chart, name, axis)
    kind, elements = "unknown", []
    if axes.name != "3d":
        for kind_of_it, elements_of_it in (
            ("pie", pie),
            ("box_and_whisker", boxes),
            ("bar", bars),
            ("scatter", scatter),
            ("line", lines),
        ):
            elements = quietly(elements_of_it, axes) or []
            if elements:
                kind = kind_of_it
                break
    chart["type"], chart["elements"] = kind, elements[:ELEMENTS_MAX]
    return chart


def describe_axis(chart, name, axis):
    """Ticks as they are in view. A scale is matplotlib's word for it, or what its numbers stand for."""
    import matplotlib.category
    import matplotlib.dates

    low, high = sorted(float(bound) for bound in axis.get_view_interval())
    chart[name + "_ticks"], chart[name + "_tick_labels"] = [], []
    for tick, label in list(zip(axis.get_majorticklocs(), axis.get_majorticklabels()))[:TICKS_MAX]:
        if low <= tick <= high and number(tick) is not None:
            chart[name + "_ticks"].append(number(tick))
            chart[name + "_tick_labels"].append(label.get_text())
    locator = axis.get_major_locator()
    if isinstance(locator, matplotlib.dates.DateLocator):
        chart[name + "_scale"] = "datetime"
    elif isinstance(locator, matplotlib.category.StrCategoryLocator):
        chart[name + "_scale"] = "categorical"
    else:
        chart[name + "_scale"] = str(axis.get_scale())


def number(value):
    """JSON has no infinity."""
    import math

    value = float(value)
    return value if math.isfinite(value) else None


def numbers(**fields):
    found = {name: number(value) for name, value in fields.items()}
    return {name: value for name, value in found.items() if value is not None}


def label_of(artist):
    """Labels that begin with an underline are matplotlib's own."""
    label = str(artist.get_label() or "")
    return "" if label.startswith("_") else label


def points_of(label, pairs):
    """Of too many, every so many; the last is always there."""
    import numpy

    pairs = numpy.ma.filled(numpy.ma.asarray(pairs, dtype=float), numpy.nan).reshape(-1, 2)
    pairs = pairs[numpy.isfinite(pairs).all(axis=1)]
    if len(pairs) > POINTS_MAX:
        pairs = pairs[numpy.linspace(0, len(pairs) - 1, POINTS_MAX).astype(int)]
    return {"label": label, "points": pairs.tolist()}


def pie(axes):
    from matplotlib.patches import Wedge

    return [
        dict(label=label_of(wedge), **numbers(angle=wedge.theta2 - wedge.theta1, radius=wedge.r))
        for wedge in axes.patches
        if isinstance(wedge, Wedge)
    ]


def boxes(axes):
    # What was cleared or removed meanwhile is not shown.
    shown = [stats for stats, median in getattr(axes, "_shown_boxes", []) if median in list(axes.lines)]
    return [
        dict(
            label=str(stats.get("label", "")),
            outliers=[value for value in map(number, stats.get("fliers", [])) if value is not None],
            **numbers(
                min=stats["whislo"],
                first_quartile=stats["q1"],
                median=stats["med"],
                third_quartile=stats["q3"],
                max=stats["whishi"],
            ),
        )
        for stats in shown
    ]


def bars(axes):
    from matplotlib.container import BarContainer

    found = []
    for container in axes.containers:
        if not isinstance(container, BarContainer):
            continue
        lies = getattr(container, "orientation", None) == "horizontal"
        ticks = tick_texts(axes.yaxis if lies else axes.xaxis)
        for bar in container.patches:
            middle, value = bar.get_x() + bar.get_width() / 2, bar.get_height()
            if lies:
                middle, value = bar.get_y() + bar.get_height() / 2, bar.get_width()
            # The model has words for values.
            found.append({"label": nearest(ticks, middle), "value": "%.15g" % value, "group": label_of(container)})
    return found


def tick_texts(axis):
    """Only ticks that someone has named: a number beside a bar is not its name."""
    import matplotlib.category
    import matplotlib.ticker

    named = (matplotlib.ticker.FixedFormatter, matplotlib.ticker.FuncFormatter, matplotlib.category.StrCategoryFormatter)
    if not isinstance(axis.get_major_formatter(), named):
        return []
    return [(float(at), label.get_text()) for at, label in zip(axis.get_majorticklocs(), axis.get_majorticklabels())]


def nearest(ticks, middle):
    """Bars of several groups stand around the tick that names them."""
    if not ticks:
        return "%.15g" % middle
    at, text = min(ticks, key=lambda tick: abs(tick[0] - middle))
    return text if abs(at - middle) <= 0.5 else "%.15g" % middle


def scatter(axes):
    from matplotlib.collections import PathCollection

    return [
        points_of(label_of(collection), collection.get_offsets())
        for collection in axes.collections
        # Areas of a contour plot are paths too, but not at places of the data.
        if isinstance(collection, PathCollection)
        and collection.get_offset_transform().contains_branch(axes.transData)
    ]


def lines(axes):
    from matplotlib.container import ErrorbarContainer

    caps = [cap for bar in axes.containers if isinstance(bar, ErrorbarContainer) for cap in bar.lines[1]]
    return [
        points_of(label_of(line), line.get_xydata())
        for line in axes.lines
        # A line across the whole axes (axhline) is measured in the axes, and is no data.
        if line not in caps and all(line.get_transform().contains_branch_seperately(axes.transData))
    ]


