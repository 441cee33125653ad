//! `atoll-daemon desktop-agent`: a process of the user that sees and drives an X server, and answers one question a line.
//!
//! It ends when its input ends, and when the X server has gone; the daemon starts it again when it has another question.

mod keyboard;
mod keys;
mod picture;
mod pointer;
mod windows;

use std::io::{BufRead, Write};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use x11rb::connection::Connection;
use x11rb::errors::{ConnectionError, ReplyError};
use x11rb::protocol::xproto::{ConnectionExt as _, Screen};
use x11rb::protocol::xtest::ConnectionExt as _;
use x11rb::rust_connection::RustConnection;

pub use keys::{chord, key, modifiers};
pub use pointer::Button;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Whether there is a window manager, and accessibility.
    Seen,
    Display,
    Windows,
    Picture(Wanted),
    Pointer,
    Move(Point),
    Click {
        at: Option<Point>,
        button: Button,
        clicks: u32,
        modifiers: Vec<String>,
    },
    Drag {
        from: Point,
        to: Point,
        button: Button,
        modifiers: Vec<String>,
    },
    Scroll {
        at: Option<Point>,
        direction: Direction,
        amount: u32,
        modifiers: Vec<String>,
    },
    Button {
        at: Option<Point>,
        button: Button,
        press: Press,
    },
    Type(String),
    /// Pressed in this order, released the other way round.
    Chord(Vec<String>),
    Key {
        key: String,
        press: Press,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    pub x: i32,
    pub y: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    Up,
    Down,
    Left,
    Right,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Press {
    Down,
    Up,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Wanted {
    /// The whole screen when absent.
    pub region: Option<Region>,
    pub format: Format,
    /// Of a JPEG, 1 to 100.
    pub quality: u8,
    pub scale: f32,
    pub show_cursor: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    pub x: i32,
    pub y: i32,
    pub width: i32,
    pub height: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Png,
    #[serde(alias = "jpg")]
    Jpeg,
    Webp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub window_manager: bool,
    pub accessibility: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The caller's.
    #[error("{0}")]
    Refused(String),
    /// The X server's: it has gone, or it can't do that.
    #[error("{0}")]
    Unavailable(String),
}

impl From<ConnectionError> for AgentError {
    fn from(error: ConnectionError) -> AgentError {
        AgentError::Unavailable(format!("the X server has gone: {error}"))
    }
}

impl From<ReplyError> for AgentError {
    fn from(error: ReplyError) -> AgentError {
        match error {
            ReplyError::ConnectionError(error) => error.into(),
            ReplyError::X11Error(error) => {
                AgentError::Refused(format!("the X server refuses: {:?}", error.error_kind))
            }
        }
    }
}

pub struct Agent {
    connection: RustConnection,
    screen: Screen,
    keyboard: keyboard::Keyboard,
}

pub fn serve_stdio() -> Result<()> {
    let mut agent = None;
    let mut output = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line.context("read a question")?;
        let ask: Ask = serde_json::from_str(&line).context("understand a question")?;
        let answer = match &mut agent {
            Some(agent) => Agent::answer(agent, &ask),
            None => match Agent::connect() {
                Ok(connected) => agent.insert(connected).answer(&ask),
                Err(error) => Err(AgentError::Unavailable(format!("{error:#}"))),
            },
        };
        let (line, goes_on) = match answer {
            Ok(value) => (json!({ "ok": value }), true),
            Err(AgentError::Refused(why)) => (json!({ "refused": why }), true),
            Err(AgentError::Unavailable(why)) => (json!({ "unavailable": why }), false),
        };
        serde_json::to_writer(&mut output, &line).context("answer")?;
        output.write_all(b"\n").and_then(|()| output.flush()).context("answer")?;
        if !goes_on {
            break;
        }
    }
    Ok(())
}

impl Agent {
    fn connect() -> Result<Agent> {
        let (connection, number) = x11rb::connect(None).context("connect to the X server")?;
        let screen = connection.setup().roots[number].clone();
        connection.xtest_get_version(2, 2)?.reply().context("the X server has no XTEST")?;
        let keyboard = keyboard::Keyboard::read(&connection).context("read the keyboard's map")?;
        Ok(Agent { connection, screen, keyboard })
    }

    fn answer(&mut self, ask: &Ask) -> Result<Value, AgentError> {
        match ask {
            Ask::Seen => self.seen().map(|seen| json!(seen)),
            Ask::Display => Ok(json!({
                "id": 0, "x": 0, "y": 0, "isActive": true,
                "width": self.screen.width_in_pixels, "height": self.screen.height_in_pixels,
            })),
            Ask::Windows => self.windows(),
            Ask::Picture(wanted) => self.picture(wanted),
            Ask::Pointer => self.pointer().map(|point| json!(point)),
            Ask::Move(to) => self.move_to(*to).and_then(|()| self.pointed()),
            Ask::Click { at, button, clicks, modifiers } => {
                self.holding(modifiers, |agent| agent.click(*at, *button, *clicks))?;
                self.pointed()
            }
            Ask::Drag { from, to, button, modifiers } => {
                self.holding(modifiers, |agent| agent.drag(*from, *to, *button))?;
                self.pointed()
            }
            Ask::Scroll { at, direction, amount, modifiers } => {
                self.holding(modifiers, |agent| agent.scroll(*at, *direction, *amount))?;
                self.pointed()
            }
            Ask::Button { at, button, press } => {
                self.press_button(*at, *button, *press)?;
                self.pointed()
            }
            Ask::Type(text) => self.type_text(text).map(|()| Value::Null),
            Ask::Chord(keys) => self.press_chord(keys).map(|()| Value::Null),
            Ask::Key { key, press } => self.press_key(key, *press).map(|()| Value::Null),
        }
    }

    /// Until the server has done all that it was told.
    fn settle(&self) -> Result<(), AgentError> {
        self.connection.get_input_focus()?.reply()?;
        Ok(())
    }

    fn fake(&self, kind: u8, detail: u8, at: Point) -> Result<(), AgentError> {
        let (x, y) = (at.x as i16, at.y as i16);
        self.connection.xtest_fake_input(kind, detail, x11rb::CURRENT_TIME, self.screen.root, x, y, 0)?;
        self.connection.flush()?;
        Ok(())
    }

    fn atom(&self, name: &str) -> Result<u32, AgentError> {
        Ok(self.connection.intern_atom(false, name.as_bytes())?.reply()?.atom)
    }
}
