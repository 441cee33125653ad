//! Which windows there are, as the window manager says it.

use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use x11rb::protocol::xproto::{AtomEnum, ConnectionExt as _, Window};

use super::{Agent, AgentError, Seen};

const WINDOWS_MAX: u32 = 500;
/// In the unit of the protocol, which is four bytes.
const TITLE_WORDS_MAX: u32 = 256;

impl Agent {
    pub(super) fn seen(&self) -> Result<Seen, AgentError> {
        let manager = self.words(self.screen.root, "_NET_SUPPORTING_WM_CHECK", 1)?;
        let bus = self.atom("AT_SPI_BUS")?;
        let bus =
            self.connection.get_property(false, self.screen.root, bus, AtomEnum::ANY, 0, TITLE_WORDS_MAX)?;
        let address = String::from_utf8_lossy(&bus.reply()?.value).into_owned();
        Ok(Seen { window_manager: !manager.is_empty(), accessibility: answers(&address) })
    }

    pub(super) fn windows(&self) -> Result<Value, AgentError> {
        let active = self.words(self.screen.root, "_NET_ACTIVE_WINDOW", 1)?.first().copied();
        let windows = self.words(self.screen.root, "_NET_CLIENT_LIST", WINDOWS_MAX)?;
        let described = windows.into_iter().filter_map(|window| {
            match self.describe(window, active == Some(window)) {
                // Closed since it was listed.
                Err(AgentError::Refused(_)) => None,
                described => Some(described),
            }
        });
        described.collect::<Result<Vec<_>, _>>().map(Value::Array)
    }

    fn describe(&self, window: Window, is_active: bool) -> Result<Value, AgentError> {
        let geometry = self.connection.get_geometry(window)?.reply()?;
        let corner = self.connection.translate_coordinates(window, self.screen.root, 0, 0)?.reply()?;
        Ok(json!({
            "id": window,
            "title": self.title(window)?,
            "x": corner.dst_x,
            "y": corner.dst_y,
            "width": geometry.width,
            "height": geometry.height,
            "isActive": is_active,
        }))
    }

    fn title(&self, window: Window) -> Result<String, AgentError> {
        let modern = self.atom("_NET_WM_NAME")?;
        for name in [modern, AtomEnum::WM_NAME.into()] {
            let title =
                self.connection.get_property(false, window, name, AtomEnum::ANY, 0, TITLE_WORDS_MAX)?;
            let title = title.reply()?.value;
            if !title.is_empty() {
                return Ok(String::from_utf8_lossy(&title).into_owned());
            }
        }
        Ok(String::new())
    }

    fn words(&self, window: Window, property: &str, words_max: u32) -> Result<Vec<u32>, AgentError> {
        let property = self.atom(property)?;
        let reply = self.connection.get_property(false, window, property, AtomEnum::ANY, 0, words_max)?;
        Ok(reply.reply()?.value32().map(Iterator::collect).unwrap_or_default())
    }
}

/// A former bus may have left its address, like `unix:path=/…/bus_1,guid=…`.
fn answers(address: &str) -> bool {
    let path = address.split(',').find_map(|part| part.strip_prefix("unix:path="));
    path.is_some_and(|path| UnixStream::connect(path).is_ok())
}
