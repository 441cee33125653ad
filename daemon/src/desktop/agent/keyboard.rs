//! Keys, pressed by their symbols. A symbol that no key has is lent a key that has none.

use std::thread::sleep;
use std::time::Duration;

use x11rb::connection::Connection;
use x11rb::errors::ReplyError;
use x11rb::protocol::xproto::{ConnectionExt as _, KEY_PRESS_EVENT, KEY_RELEASE_EVENT, Keycode, Keysym};
use x11rb::rust_connection::RustConnection;

use super::keys::{self, SHIFT, UNICODE};
use super::{Agent, AgentError, Point, Press};

/// A program that is told of a changed key asks for the map a moment later. Before a key is lent again, it should have.
const LENT_AGAIN_PAUSE: Duration = Duration::from_millis(150);
/// Before the first use of a key just lent.
const LENT_PAUSE: Duration = Duration::from_millis(15);
/// Between two keys: input methods lose keys that come all at once.
const TYPE_PAUSE: Duration = Duration::from_millis(2);

pub struct Keyboard {
    first: Keycode,
    symbols_a_key: usize,
    map: Vec<Keysym>,
    /// Keys without a symbol, and those that were lent one, the longest ago first.
    spare: Vec<Keycode>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Plain,
    Shifted,
}

impl Keyboard {
    pub fn read(connection: &RustConnection) -> Result<Keyboard, ReplyError> {
        let setup = connection.setup();
        let (first, last) = (setup.min_keycode, setup.max_keycode);
        let reply = connection.get_keyboard_mapping(first, last - first + 1)?.reply()?;
        let symbols_a_key = usize::from(reply.keysyms_per_keycode).max(1);
        let mut keyboard = Keyboard { first, symbols_a_key, map: reply.keysyms, spare: Vec::new() };
        // Also what an earlier agent has lent: keys with nothing but one symbol beyond Latin-1.
        let is_spare = |symbols: &[Keysym]| {
            symbols.iter().all(|symbol| *symbol == 0 || (*symbol & UNICODE != 0 && *symbol == symbols[0]))
        };
        let spare = keyboard.map.chunks(symbols_a_key).enumerate().filter(|(_, symbols)| is_spare(symbols));
        keyboard.spare = spare.map(|(at, _)| first + at as u8).collect();
        Ok(keyboard)
    }

    fn find(&self, symbol: Keysym) -> Option<(Keycode, Level)> {
        let find = |level: usize| {
            let at =
                self.map.chunks(self.symbols_a_key).position(|symbols| symbols.get(level) == Some(&symbol));
            at.map(|at| self.first + at as u8)
        };
        match find(0) {
            Some(code) => Some((code, Level::Plain)),
            // A letter key with one symbol only has its capital by shift, too.
            None => find(1).map(|code| (code, Level::Shifted)),
        }
    }

    fn symbols_of(&mut self, code: Keycode) -> &mut [Keysym] {
        let at = usize::from(code - self.first) * self.symbols_a_key;
        &mut self.map[at..at + self.symbols_a_key]
    }
}

impl Agent {
    pub(super) fn type_text(&mut self, text: &str) -> Result<(), AgentError> {
        let symbols: Vec<Keysym> = text.chars().map(keys::symbol_of).collect();
        let mut rest = symbols.as_slice();
        while !rest.is_empty() {
            // As many as there are keys to lend; most often that is all.
            let (lendable, mut missing) = (self.keyboard.spare.len(), Vec::new());
            let fits = |symbol: &Keysym| {
                if self.keyboard.find(*symbol).is_none() && !missing.contains(symbol) {
                    missing.push(*symbol);
                }
                missing.len() <= lendable
            };
            let length = rest.iter().take_while({
                let mut fits = fits;
                move |symbol| fits(symbol)
            });
            let length = length.count();
            let (now, later) = rest.split_at(length);
            if now.is_empty() {
                return Err(AgentError::Refused("the keyboard has no key left for such characters".into()));
            }
            self.lend(now)?;
            for symbol in now {
                self.tap(*symbol)?;
                sleep(TYPE_PAUSE);
            }
            rest = later;
        }
        self.settle()
    }

    pub(super) fn press_chord(&mut self, names: &[String]) -> Result<(), AgentError> {
        let symbols = names.iter().map(|name| keys::key(name)).collect::<Result<Vec<_>, _>>();
        let symbols = symbols.map_err(AgentError::Refused)?;
        self.lend(&symbols)?;
        let Some((last, held)) = symbols.split_last() else { return Ok(()) };
        self.while_holding(held, |agent| agent.tap(*last))
    }

    pub(super) fn press_key(&mut self, name: &str, press: Press) -> Result<(), AgentError> {
        let symbol = keys::key(name).map_err(AgentError::Refused)?;
        self.lend(&[symbol])?;
        let (code, _) = self.code(symbol)?;
        self.key(code, press)?;
        self.settle()
    }

    pub(super) fn holding(
        &mut self,
        modifiers: &[String],
        act: impl FnOnce(&Agent) -> Result<(), AgentError>,
    ) -> Result<(), AgentError> {
        let symbols = modifiers.iter().map(|name| keys::key(name)).collect::<Result<Vec<_>, _>>();
        let symbols = symbols.map_err(AgentError::Refused)?;
        self.lend(&symbols)?;
        self.while_holding(&symbols, act)
    }

    /// Whatever comes of it, they are released.
    fn while_holding(
        &self,
        symbols: &[Keysym],
        act: impl FnOnce(&Agent) -> Result<(), AgentError>,
    ) -> Result<(), AgentError> {
        let mut held = Vec::new();
        let pressed = symbols.iter().try_for_each(|symbol| {
            let (code, _) = self.code(*symbol)?;
            held.push(code);
            self.key(code, Press::Down)
        });
        let acted = pressed.and_then(|()| act(self));
        for code in held.into_iter().rev() {
            self.key(code, Press::Up)?;
        }
        self.settle()?;
        acted
    }

    fn tap(&self, symbol: Keysym) -> Result<(), AgentError> {
        let (code, level) = self.code(symbol)?;
        let shift = match level {
            Level::Plain => None,
            Level::Shifted => Some(self.code(SHIFT)?.0),
        };
        if let Some(shift) = shift {
            self.key(shift, Press::Down)?;
        }
        self.key(code, Press::Down)?;
        self.key(code, Press::Up)?;
        match shift {
            Some(shift) => self.key(shift, Press::Up),
            None => Ok(()),
        }
    }

    /// Gives each symbol that has no key one of the spare ones.
    fn lend(&mut self, symbols: &[Keysym]) -> Result<(), AgentError> {
        let mut has_lent = false;
        let mut has_lent_again = false;
        for symbol in symbols {
            if self.keyboard.find(*symbol).is_some() {
                continue;
            }
            // Of those that were lent already, none that is needed now.
            let at = self.keyboard.spare.iter().position(|code| {
                let current =
                    self.keyboard.map[usize::from(code - self.keyboard.first) * self.keyboard.symbols_a_key];
                !symbols.contains(&current)
            });
            let at = at.ok_or_else(|| AgentError::Refused("the keyboard has no key left".into()))?;
            let code = self.keyboard.spare.remove(at);
            self.keyboard.spare.push(code);
            has_lent_again |= self.keyboard.symbols_of(code)[0] != 0;
            if has_lent_again && !has_lent {
                sleep(LENT_AGAIN_PAUSE);
            }
            self.keyboard.symbols_of(code).fill(*symbol);
            let lent = self.keyboard.symbols_of(code).to_vec();
            self.connection.change_keyboard_mapping(1, code, lent.len() as u8, &lent)?;
            has_lent = true;
        }
        if has_lent {
            self.settle()?;
            sleep(LENT_PAUSE);
        }
        Ok(())
    }

    fn code(&self, symbol: Keysym) -> Result<(Keycode, Level), AgentError> {
        let found = self.keyboard.find(symbol);
        found.ok_or_else(|| AgentError::Refused(format!("the keyboard has no key for symbol {symbol:#x}")))
    }

    fn key(&self, code: Keycode, press: Press) -> Result<(), AgentError> {
        let kind = match press {
            Press::Down => KEY_PRESS_EVENT,
            Press::Up => KEY_RELEASE_EVENT,
        };
        self.fake(kind, code, Point { x: 0, y: 0 })
    }
}
