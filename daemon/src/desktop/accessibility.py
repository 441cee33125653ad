"""Answers questions about what programs show, as they describe it themselves (AT-SPI): one JSON line for one JSON line.

Run by the daemon as the sandbox's user. It asks programs directly over their bus; one that does not answer is left out.
"""
import json
import re
import sys
import time

try:
    from gi.repository import Gio, GLib
except ImportError as error:
    sys.stdin.readline()
    print(json.dumps({"unavailable": "the package python3-gi is not installed: %s" % error}), flush=True)
    sys.exit(0)

ACCESSIBLE = "org.a11y.atspi.Accessible"
PREFIX = "org.a11y.atspi."
REGISTRY = ("org.a11y.atspi.Registry", "/org/a11y/atspi/accessible/root")
NOTHING = "/org/a11y/atspi/null"
# The place of what has none, like an entry of a menu that is closed.
NOWHERE = -(2**31)
CALL_MS = 1000
# Of one question, so that an answer comes before the caller has lost patience, and can be read.
SECONDS_MAX = 8
NODES_MAX = 5000
DEPTH_MAX = 100
TEXT_MAX = 2000
ID = re.compile(r"(:[0-9]+\.[0-9]+|[A-Za-z_][A-Za-z0-9_.-]*):(/[A-Za-z0-9_/]*)")
STATES = (
    "invalid active armed busy checked collapsed defunct editable enabled expandable expanded focusable focused "
    "has-tooltip horizontal iconified modal multi-line multiselectable opaque pressed resizable selectable selected "
    "sensitive showing single-line stale transient vertical visible manages-descendants indeterminate required truncated "
    "animated invalid-entry supports-autocompletion selectable-text is-default visited checkable has-popup read-only"
).split()


class Refused(Exception):
    """The caller's: it can't be asked like this."""


class Unknown(Exception):
    """The caller's: there is no such thing, or no more."""


class Bus:
    def __init__(self):
        session = Gio.bus_get_sync(Gio.BusType.SESSION, None)
        answer = session.call_sync(
            "org.a11y.Bus", "/org/a11y/bus", "org.a11y.Bus", "GetAddress", None, None, 0, 5 * CALL_MS, None
        )
        flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
        self.connection = Gio.DBusConnection.new_for_address_sync(answer.unpack()[0], flags, None, None)

    def call(self, node, interface, method, arguments=None, of=PREFIX):
        # The registry begins with the first who asks; a program that has gone is not to come back.
        start = Gio.DBusCallFlags.NONE if node == REGISTRY else Gio.DBusCallFlags.NO_AUTO_START
        answer = self.connection.call_sync(node[0], node[1], of + interface, method, arguments, None, start, CALL_MS, None)
        return answer.unpack()

    def property(self, node, interface, name):
        arguments = GLib.Variant("(ss)", (PREFIX + interface, name))
        return self.call(node, "Properties", "Get", arguments, "org.freedesktop.DBus.")[0]

    def set_property(self, node, interface, name, value):
        arguments = GLib.Variant("(ssv)", (PREFIX + interface, name, value))
        self.call(node, "Properties", "Set", arguments, "org.freedesktop.DBus.")

    def pid(self, name):
        bus = ("org.freedesktop.DBus", "/org/freedesktop/DBus")
        arguments = GLib.Variant("(s)", (name,))
        return self.call(bus, "DBus", "GetConnectionUnixProcessID", arguments, "org.freedesktop.")[0]

    def children(self, node):
        return [child for child in self.call(node, "Accessible", "GetChildren")[0] if child[1] != NOTHING]

    def states(self, node):
        low, high = (self.call(node, "Accessible", "GetState")[0] + [0, 0])[:2]
        bits = low | high << 32
        return [name for number, name in enumerate(STATES) if bits >> number & 1]

    def bounds(self, node):
        return self.call(node, "Component", "GetExtents", GLib.Variant("(u)", (0,)))[0]

    def is_on_screen(self, node):
        x, y, width, height = self.bounds(node)
        return x + width > 0 and y + height > 0

    def interfaces(self, node):
        return {name.rpartition(".")[2] for name in self.call(node, "Accessible", "GetInterfaces")[0]}


class Walk:
    """One look at a part of the tree, within bounds."""

    def __init__(self, bus):
        self.bus = bus
        self.until = time.monotonic() + SECONDS_MAX
        self.left = NODES_MAX
        self.truncated = False
        self.silent = set()

    def may_go_on(self):
        if self.left <= 0 or time.monotonic() > self.until:
            self.truncated = True
            return False
        self.left -= 1
        return True

    def describe(self, node):
        """None for what has gone meanwhile, and for what does not answer."""
        if node[0] in self.silent:
            return None
        bus = self.bus
        try:
            described = {
                "id": "%s:%s" % node,
                "role": bus.call(node, "Accessible", "GetRoleName")[0],
                "name": bus.property(node, "Accessible", "Name")[:TEXT_MAX].strip(),
                "description": bus.property(node, "Accessible", "Description")[:TEXT_MAX],
                "states": bus.states(node),
            }
            interfaces = bus.interfaces(node)
            if "Component" in interfaces:
                x, y, width, height = bus.bounds(node)
                if min(x, y) > NOWHERE:
                    described["bounds"] = {"x": x, "y": y, "width": width, "height": height}
            if "Action" in interfaces:
                described["actions"] = [action[0] for action in bus.call(node, "Action", "GetActions")[0]]
            return described
        except GLib.Error as error:
            self.note(node, error)
            return None

    def children(self, node):
        try:
            return self.bus.children(node) if node[0] not in self.silent else []
        except GLib.Error as error:
            self.note(node, error)
            return []

    def note(self, node, error):
        if error.matches(Gio.io_error_quark(), Gio.IOErrorEnum.TIMED_OUT):
            self.silent.add(node[0])
            self.truncated = True

    def tree(self, node, depth_left):
        described = self.describe(node)
        if described is None or depth_left == 0:
            return described
        children = []
        for child in self.children(node):
            if not self.may_go_on():
                break
            grown = self.tree(tuple(child), depth_left - 1)
            if grown is not None:
                children.append(grown)
        described["children"] = children
        return described


def root(bus, walk, scope, pid):
    if scope == "all":
        return REGISTRY
    applications = [tuple(child) for child in walk.children(REGISTRY)]
    if scope == "pid":
        if pid is None:
            raise Refused("with scope pid, pid is the number of a process")
        for application in applications:
            try:
                if bus.pid(application[0]) == pid:
                    return application
            except GLib.Error:
                continue
        raise Unknown("process %d shows nothing, or does not describe it" % pid)
    if scope != "focused":
        raise Refused("scope is focused, pid or all")
    hidden = None
    for application in applications:
        for window in walk.children(application):
            try:
                if "active" in bus.states(tuple(window)):
                    if bus.is_on_screen(tuple(window)):
                        return application
                    # Window managers keep one off the screen that is always active.
                    hidden = hidden or application
            except GLib.Error as error:
                walk.note(window, error)
    if hidden is not None:
        return hidden
    raise Unknown("no application that describes itself has the focus")


def tree(bus, ask):
    depth = -1 if ask.get("maxDepth") is None else ask["maxDepth"]
    if depth < -1:
        raise Refused("maxDepth is at least 0, or -1 for all")
    walk = Walk(bus)
    start = root(bus, walk, ask.get("scope") or "focused", ask.get("pid"))
    grown = walk.tree(start, DEPTH_MAX if depth == -1 else min(depth, DEPTH_MAX))
    if grown is None:
        raise Unknown("the application has gone, or does not answer")
    return {"root": grown, "truncated": walk.truncated}


def plain(word):
    return word.lower().replace("_", "-").replace(" ", "-")


def name_filter(name, match):
    if match not in ("exact", "substring", "regex"):
        raise Refused("nameMatch is exact, substring or regex")
    if not name:
        return lambda found: True
    if match == "exact":
        return lambda found: found == name
    if match == "substring":
        return lambda found: name.lower() in found.lower()
    try:
        pattern = re.compile(name)
    except (re.error, OverflowError, RecursionError) as error:
        raise Refused("name is no regular expression: %s" % error)
    return lambda found: pattern.search(found) is not None


def find(bus, ask):
    limit = 100 if ask.get("limit") is None else ask["limit"]
    if not 1 <= limit <= 1000:
        raise Refused("limit is from 1 to 1000")
    role, states = plain(ask.get("role") or ""), {plain(state) for state in ask.get("states") or []}
    odd = states.difference(STATES)
    if odd:
        raise Refused("no state %r; there are %s" % (sorted(odd)[0], ", ".join(STATES)))
    fits = name_filter(ask.get("name"), ask.get("nameMatch") or "substring")
    walk = Walk(bus)
    matches, waiting = [], [(root(bus, walk, ask.get("scope") or "focused", ask.get("pid")), 0)]
    while waiting and walk.may_go_on():
        node, depth = waiting.pop()
        described = walk.describe(node)
        if described is None:
            continue
        if (not role or plain(described["role"]) == role) and fits(described["name"]) and states <= set(described["states"]):
            if len(matches) == limit:
                walk.truncated = True
                break
            matches.append(described)
        if depth < DEPTH_MAX:
            waiting.extend((tuple(child), depth + 1) for child in reversed(walk.children(node)))
    return {"matches": matches, "truncated": walk.truncated}


def parse(identifier):
    parts = ID.fullmatch(identifier)
    if parts is None or len(identifier) > 500 or not GLib.Variant.is_object_path(parts[2]):
        raise Refused("id is what the tree or a search says, like :1.7:/org/a11y/atspi/accessible/3")
    return parts[1], parts[2]


def focus(bus, ask):
    node = parse(ask["id"])
    if "Component" not in bus.interfaces(node) or not bus.call(node, "Component", "GrabFocus")[0]:
        raise Refused("this node can't have the focus")


def invoke(bus, ask):
    node = parse(ask["id"])
    names = [action[0] for action in bus.call(node, "Action", "GetActions")[0]] if "Action" in bus.interfaces(node) else []
    wanted = ask.get("action")
    if not names:
        raise Refused("this node has no action")
    matching = [number for number, name in enumerate(names) if not wanted or plain(name) == plain(wanted)]
    if not matching:
        raise Refused("no action %r; there are %s" % (wanted, ", ".join(names)))
    if not bus.call(node, "Action", "DoAction", GLib.Variant("(i)", (matching[0],)))[0]:
        raise Refused("the program did not do it")


def set_value(bus, ask):
    node, value = parse(ask["id"]), ask.get("value") or ""
    interfaces = bus.interfaces(node)
    if "EditableText" in interfaces:
        if not bus.call(node, "EditableText", "SetTextContents", GLib.Variant("(s)", (value,)))[0]:
            raise Refused("this text can't be changed")
    elif "Value" in interfaces:
        try:
            number = float(value)
        except ValueError:
            raise Refused("the value of this node is a number")
        bus.set_property(node, "Value", "CurrentValue", GLib.Variant("d", number))
    else:
        raise Refused("this node has no value that could be set")


ANSWERS = {"tree": tree, "find": find, "focus": focus, "invoke": invoke, "value": set_value}
GONE = (
    "org.freedesktop.DBus.Error.ServiceUnknown org.freedesktop.DBus.Error.UnknownObject org.freedesktop.DBus.Error.UnknownMethod "
    "org.freedesktop.DBus.Error.UnknownInterface org.freedesktop.DBus.Error.NameHasNoOwner org.freedesktop.DBus.Error.NoReply"
).split()


def answer(bus, ask):
    try:
        return {"ok": ANSWERS[ask["op"]](bus, ask)}
    except Refused as error:
        return {"refused": str(error)}
    except Unknown as error:
        return {"unknown": str(error)}
    except GLib.Error as error:
        name = Gio.DBusError.get_remote_error(error)
        if error.matches(Gio.io_error_quark(), Gio.IOErrorEnum.TIMED_OUT):
            return {"unknown": "the program does not answer"}
        if name in GONE:
            return {"unknown": "there is no such node, or no more"}
        if name is not None:
            return {"refused": "the program refuses: %s" % error.message}
        return {"unavailable": "the accessibility bus does not answer: %s" % error.message}


def main():
    bus = None
    for line in sys.stdin:
        try:
            bus = bus or Bus()
        except GLib.Error as error:
            said = {"unavailable": "there is no accessibility bus: %s" % error.message}
        else:
            said = answer(bus, json.loads(line))
        print(json.dumps(said), flush=True)
        if "unavailable" in said:
            break


main()
