//! The pointer and its buttons.

use std::thread::sleep;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use x11rb::protocol::xproto::{
    BUTTON_PRESS_EVENT, BUTTON_RELEASE_EVENT, ConnectionExt as _, MOTION_NOTIFY_EVENT,
};

use super::{Agent, AgentError, Direction, Point, Press};

/// Between two clicks: well within what counts as a double click.
const CLICK_PAUSE: Duration = Duration::from_millis(40);
/// Programs take a drag for one when they see the way, not only its ends.
const DRAG_STEPS: i32 = 12;
const DRAG_PAUSE: Duration = Duration::from_millis(12);
/// Some programs take several notches at once for one.
const SCROLL_PAUSE: Duration = Duration::from_millis(4);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Button {
    #[default]
    Left,
    Middle,
    Right,
}

impl Button {
    fn number(self) -> u8 {
        match self {
            Button::Left => 1,
            Button::Middle => 2,
            Button::Right => 3,
        }
    }
}

impl Agent {
    pub(super) fn pointer(&self) -> Result<Point, AgentError> {
        let reply = self.connection.query_pointer(self.screen.root)?.reply()?;
        Ok(Point { x: reply.root_x.into(), y: reply.root_y.into() })
    }

    pub(super) fn pointed(&self) -> Result<Value, AgentError> {
        self.pointer().map(|point| json!(point))
    }

    pub(super) fn move_to(&self, to: Point) -> Result<(), AgentError> {
        let (width, height) = (self.screen.width_in_pixels.into(), self.screen.height_in_pixels.into());
        if !(0..width).contains(&to.x) || !(0..height).contains(&to.y) {
            let Point { x, y } = to;
            return Err(AgentError::Refused(format!(
                "{x},{y} is outside of the screen, which has {width} by {height} pixels"
            )));
        }
        self.fake(MOTION_NOTIFY_EVENT, 0, to)?;
        self.settle()
    }

    pub(super) fn click(&self, at: Option<Point>, button: Button, clicks: u32) -> Result<(), AgentError> {
        at.map_or(Ok(()), |at| self.move_to(at))?;
        for click in 0..clicks {
            if click > 0 {
                sleep(CLICK_PAUSE);
            }
            self.push(button.number())?;
        }
        self.settle()
    }

    pub(super) fn drag(&self, from: Point, to: Point, button: Button) -> Result<(), AgentError> {
        // Refused before the button is down.
        self.move_to(to)?;
        self.move_to(from)?;
        self.button(button.number(), Press::Down)?;
        let moved = (1..=DRAG_STEPS).try_for_each(|step| {
            sleep(DRAG_PAUSE);
            let along = |from: i32, to: i32| from + (to - from) * step / DRAG_STEPS;
            self.move_to(Point { x: along(from.x, to.x), y: along(from.y, to.y) })
        });
        sleep(DRAG_PAUSE);
        self.button(button.number(), Press::Up)?;
        moved?;
        self.settle()
    }

    pub(super) fn scroll(
        &self,
        at: Option<Point>,
        direction: Direction,
        amount: u32,
    ) -> Result<(), AgentError> {
        at.map_or(Ok(()), |at| self.move_to(at))?;
        let button = match direction {
            Direction::Up => 4,
            Direction::Down => 5,
            Direction::Left => 6,
            Direction::Right => 7,
        };
        for _ in 0..amount {
            self.push(button)?;
            sleep(SCROLL_PAUSE);
        }
        self.settle()
    }

    pub(super) fn press_button(
        &self,
        at: Option<Point>,
        button: Button,
        press: Press,
    ) -> Result<(), AgentError> {
        at.map_or(Ok(()), |at| self.move_to(at))?;
        self.button(button.number(), press)?;
        self.settle()
    }

    fn push(&self, number: u8) -> Result<(), AgentError> {
        self.button(number, Press::Down)?;
        self.button(number, Press::Up)
    }

    fn button(&self, number: u8, press: Press) -> Result<(), AgentError> {
        let kind = match press {
            Press::Down => BUTTON_PRESS_EVENT,
            Press::Up => BUTTON_RELEASE_EVENT,
        };
        self.fake(kind, number, Point { x: 0, y: 0 })
    }
}
