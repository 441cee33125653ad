"""Runs the code of one interpreter context. The daemon starts it as `python3 - <number>`, this text on standard input.

Requests and reports are lines of JSON on the descriptor of that number, which no child process gets. What user code writes, also
by descriptor 1 or 2 and from child processes, the daemon reads by itself: nothing that is printed can be taken for a report.

    request  {"id", "code", "envs"}
    reports  {"id", "type": "error", "name", "value", "traceback"}     at most one
             {"id", "type": "done", "interrupted"}                     the last
"""

import sys

# Code runs in its own folder, which comes first in the path. A `json.py` there is a module of the user's, not ours.
_path, sys.path = sys.path, [folder for folder in sys.path if folder]
import builtins
import io
import json
import os
import signal
import traceback
import types
sys.path = _path

FILE = "<stdin>"
TEXT_MAX = 64 * 1024


class Driver:
    def __init__(self, channel):
        self.channel = channel
        self.pid = os.getpid()
        self.is_running = False
        # User code is `__main__` (pickle and dataclasses look there), without a name of ours in it.
        self.ours = sys.modules["__main__"]
        self.main = types.ModuleType("__main__")
        self.main.__builtins__ = builtins
        sys.modules["__main__"] = self.main
        os.set_inheritable(channel, False)
        os.register_at_fork(after_in_child=lambda: os.close(channel))

    def serve(self):
        with os.fdopen(self.channel, "rb", closefd=False) as requests:
            while True:
                line = requests.readline()
                if not line:
                    return
                request = json.loads(line)
                error, interrupted = self.run(request["code"], request["envs"])
                if error is not None:
                    self.report(id=request["id"], type="error", **error)
                self.report(id=request["id"], type="done", interrupted=interrupted)

    def report(self, **fields):
        rest = json.dumps(fields).encode("ascii") + b"\n"
        while rest:
            rest = rest[os.write(self.channel, rest):]

    def run(self, code, envs):
        """The error, if there is one, and whether it is an interruption."""
        before = {name: os.environ.get(name) for name in envs}
        os.environ.update(envs)
        prepare_streams()
        sys.argv = [""]
        # Code may have set its own, or none.
        signal.signal(signal.SIGINT, self.interrupt)
        error, interrupted = None, False
        try:
            try:
                compiled = compile(code, FILE, "exec", dont_inherit=True)
                self.is_running = True
                exec(compiled, self.main.__dict__)
            finally:
                self.is_running = False
        except SystemExit as exit:
            if exit.code is not None and not isinstance(exit.code, int):
                print(exit.code, file=sys.stderr)
        except BaseException as exception:
            self.is_running = False
            interrupted = isinstance(exception, KeyboardInterrupt)
            error = describe(exception)
        flush_streams()
        if os.getpid() != self.pid:
            # A fork that user code did not end. It has no channel, and the run is its parent's.
            if error is not None:
                os.write(2, error["traceback"].encode("utf-8", "backslashreplace"))
            os._exit(1 if error is not None else 0)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        return error, interrupted

    def interrupt(self, number, frame):
        """An interruption that comes when the code has just ended is for nobody. A fork of the code has no other end."""
        if self.is_running or os.getpid() != self.pid:
            self.is_running = False
            raise KeyboardInterrupt


def prepare_streams():
    """Lines arrive when they are written, and whole. Code may have closed a stream, or put another in its place, which stays."""
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        stream = getattr(sys, name, None)
        if stream is None or getattr(stream, "closed", False):
            if not is_open(number):
                # Its place must not be taken by the next file that is opened.
                os.dup2(os.open(os.devnull, os.O_RDWR), number)
            stream = open(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False)
            setattr(sys, name, stream)
        if mode == "w" and isinstance(stream, io.TextIOWrapper):
            try:
                # PYTHONUNBUFFERED would make two writes of each `print`.
                stream.reconfigure(
                    encoding="utf-8", errors="backslashreplace", line_buffering=True, write_through=False
                )
            except Exception:
                pass


def flush_streams():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass


def is_open(number):
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def describe(exception):
    """The traceback begins with the user's own frames, as `<stdin>`. None of ours is in it."""
    frames = exception.__traceback__
    while frames is not None and frames.tb_frame.f_globals is globals():
        frames = frames.tb_next
    kind = type(exception)
    try:
        value = str(exception)
    except Exception:
        value = "<%s whose text can't be had>" % kind.__name__
    try:
        text = "".join(traceback.format_exception(kind, exception, frames))
    except Exception:
        text = "%s: %s\n" % (kind.__name__, value)
    return {"name": kind.__name__, "value": clipped(value), "traceback": clipped(text)}


def clipped(text):
    """Text that fits into a report, and that is text: half a surrogate pair is none."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    if len(text) <= TEXT_MAX:
        return text
    half = TEXT_MAX // 2
    return "%s\n[... %d characters omitted ...]\n%s" % (text[:half], len(text) - 2 * half, text[-half:])


def live():
    # The number is for us alone; code sees what an interpreter without arguments has.
    driver = Driver(int(sys.argv[1]))
    signal.signal(signal.SIGINT, driver.interrupt)
    while True:
        try:
            return driver.serve()
        except KeyboardInterrupt:
            # It came between two runs, before our own handler had been set again.
            continue


live()
