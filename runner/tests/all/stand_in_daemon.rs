//! A stand-in for the daemon, for tests of the runner alone: std only, built static by the test that needs it.
//! Says hello, answers `GET` on its port after the preamble, reaps nothing, ends on SIGTERM.
//! The sandbox's environment (in its config) steers it: `MUTE` never says hello, `QUIT` exits with 3 at once,
//! `LOCALHOST_PORT` also listens there, on 127.0.0.1 only, and answers `inside` to everybody; `PUBLIC_PORT` the same on
//! every address.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    fn _exit(code: i32) -> !;
}

extern "C" fn on_sigterm(_: i32) {
    unsafe { _exit(143) }
}

fn main() {
    unsafe { signal(15, on_sigterm) };
    let config = std::fs::read_to_string("/.atoll/run/config.json").expect("config");
    let secret = text_of(&config, "secret").expect("secret");
    let sandbox_id = text_of(&config, "sandboxId").expect("sandbox id");
    if text_of(&config, "QUIT").is_some() {
        std::process::exit(3);
    }
    for (name, address) in [("LOCALHOST_PORT", "127.0.0.1"), ("PUBLIC_PORT", "0.0.0.0")] {
        let Some(port) = text_of(&config, name) else { continue };
        let listener = TcpListener::bind(format!("{address}:{port}")).expect("bind");
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = (&stream).write_all(b"inside");
            }
        });
    }
    let listener = TcpListener::bind("127.0.0.1:2280").expect("bind 2280");
    if text_of(&config, "MUTE").is_none() {
        let mut hello = UnixStream::connect("/.atoll/run/hello.sock").expect("hello socket");
        let line = format!("{{\"sandboxId\":\"{sandbox_id}\",\"secret\":\"{secret}\",\"version\":\"stand-in\"}}\n");
        hello.write_all(line.as_bytes()).expect("hello");
    }
    for stream in listener.incoming().flatten() {
        let expected = format!("ATOLL/1 {secret}\n");
        thread::spawn(move || serve(stream, &expected));
    }
}

fn serve(mut stream: TcpStream, expected: &str) {
    let mut shown = vec![0u8; expected.len()];
    if stream.read_exact(&mut shown).is_err() || shown != expected.as_bytes() {
        return;
    }
    let mut request = [0u8; 1024];
    if stream.read(&mut request).is_ok_and(|count| count > 0) {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\nstand-in");
    }
}

/// The value of `"name":"value"`. Enough for what the runner writes.
fn text_of(json: &str, name: &str) -> Option<String> {
    let rest = json.split_once(&format!("\"{name}\":\""))?.1;
    Some(rest.split_once('"')?.0.to_owned())
}
