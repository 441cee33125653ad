// What is typed goes as text, a new size as {"rows", "cols"}; what comes is text to show. Paths are relative: the page may be served
// below a prefix.
"use strict";

const terminal = new Terminal({ cursorBlink: true, scrollback: 10000, theme: { background: "#101418" } });
const fit = new FitAddon.FitAddon();
terminal.loadAddon(fit);
terminal.open(document.getElementById("terminal"));
fit.fit();
terminal.focus();
addEventListener("resize", () => fit.fit());

let socket = null;

function connect() {
  const address = new URL("ws" + location.search, location.href);
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  const opened = new WebSocket(address);
  socket = opened;
  opened.onopen = () => sendSize(terminal);
  opened.onmessage = (message) => terminal.write(message.data);
  opened.onclose = (close) => {
    socket = null;
    terminal.write("\r\n\x1b[2m[" + (close.reason || "connection lost") + "; press Enter for a new terminal]\x1b[0m\r\n");
  };
}

function sendSize({ rows, cols }) {
  if (socket !== null && socket.readyState === WebSocket.OPEN) {
    socket.send(JSON.stringify({ rows, cols }));
  }
}

terminal.onResize(sendSize);
terminal.onData((data) => {
  if (socket === null) {
    if (data === "\r") {
      terminal.reset();
      connect();
    }
  } else if (socket.readyState === WebSocket.OPEN) {
    socket.send(data);
  }
});
connect();
