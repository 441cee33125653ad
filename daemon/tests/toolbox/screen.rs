//! A window over the whole of display `:1` that remembers what happens to it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use x11rb::connection::Connection;
use x11rb::protocol::xproto::{
    ButtonPressEvent, ClientMessageEvent, ConfigureWindowAux, ConnectionExt, CreateWindowAux, EventMask,
    GrabMode, GrabStatus, KeyButMask, StackMode, WindowClass,
};
use x11rb::rust_connection::RustConnection;

const DEADLINE: Duration = Duration::from_secs(5);

pub struct Canvas {
    connection: Arc<RustConnection>,
    window: u32,
    marker: u32,
    marks: u32,
    seen: Arc<Mutex<Seen>>,
    listener: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    events: Vec<Event>,
    marks: u32,
    is_exposed: bool,
    is_over: bool,
}

#[derive(Debug, Clone)]
pub enum Event {
    Key { down: bool, symbols: Vec<u32>, state: KeyButMask },
    Button { down: bool, number: u8, x: i16, y: i16, state: KeyButMask },
    Motion,
}

impl Canvas {
    pub fn open(color: u32) -> Canvas {
        let (connection, number) = x11rb::connect(Some(":1")).unwrap();
        let screen = connection.setup().roots[number].clone();
        let window = connection.generate_id().unwrap();
        let events = EventMask::KEY_PRESS
            | EventMask::KEY_RELEASE
            | EventMask::BUTTON_PRESS
            | EventMask::BUTTON_RELEASE
            | EventMask::POINTER_MOTION
            | EventMask::EXPOSURE;
        let aux = CreateWindowAux::new().override_redirect(1).background_pixel(color).event_mask(events);
        let (width, height) = (screen.width_in_pixels, screen.height_in_pixels);
        let class = WindowClass::INPUT_OUTPUT;
        connection
            .create_window(screen.root_depth, window, screen.root, 0, 0, width, height, 0, class, 0, &aux)
            .unwrap();
        connection.map_window(window).unwrap();
        let marker = connection.intern_atom(false, b"ATOLL_MARK").unwrap().reply().unwrap().atom;
        let (connection, seen) = (Arc::new(connection), Arc::<Mutex<Seen>>::default());
        // As a program does it: events are taken, and the keyboard's map asked for, as they come.
        let listener = std::thread::spawn({
            let (connection, seen) = (connection.clone(), seen.clone());
            move || listen(&connection, &seen)
        });
        let canvas = Canvas { connection, window, marker, marks: 0, seen, listener: Some(listener) };
        canvas.wait("it is shown", |seen| seen.is_exposed);
        canvas.grab();
        canvas
    }

    /// Whatever else comes up on the desktop meanwhile, what happens is ours.
    fn grab(&self) {
        let (pointer, now) = (
            EventMask::BUTTON_PRESS | EventMask::BUTTON_RELEASE | EventMask::POINTER_MOTION,
            x11rb::CURRENT_TIME,
        );
        let until = Instant::now() + DEADLINE;
        loop {
            let pointer = self.connection.grab_pointer(
                false,
                self.window,
                pointer,
                GrabMode::ASYNC,
                GrabMode::ASYNC,
                0_u32,
                0_u32,
                now,
            );
            let pointer = pointer.unwrap().reply().unwrap().status;
            let keyboard =
                self.connection.grab_keyboard(false, self.window, now, GrabMode::ASYNC, GrabMode::ASYNC);
            let keyboard = keyboard.unwrap().reply().unwrap().status;
            if (pointer, keyboard) == (GrabStatus::SUCCESS, GrabStatus::SUCCESS) {
                return;
            }
            assert!(Instant::now() < until, "somebody else has grabbed them");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn wait(&self, what: &str, holds: impl Fn(&Seen) -> bool) {
        let until = Instant::now() + DEADLINE;
        while !holds(&self.seen.lock().unwrap()) {
            assert!(Instant::now() < until, "never: {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn raise(&self) {
        let above = ConfigureWindowAux::new().stack_mode(StackMode::ABOVE);
        self.connection.configure_window(self.window, &above).unwrap();
        self.connection.get_input_focus().unwrap().reply().unwrap();
    }

    pub fn forget(&mut self) {
        self.events();
    }

    /// All that has happened until now: a mark sent to ourselves comes after it.
    pub fn events(&mut self) -> Vec<Event> {
        self.marks += 1;
        let mark = ClientMessageEvent::new(32, self.window, self.marker, [0_u32; 5]);
        self.connection.send_event(false, self.window, EventMask::NO_EVENT, mark).unwrap();
        self.connection.flush().unwrap();
        let marks = self.marks;
        self.wait("the mark comes back", |seen| seen.marks >= marks);
        std::mem::take(&mut self.seen.lock().unwrap().events)
    }

    pub fn clicks(&mut self) -> Vec<String> {
        let is_button = |event: &Event| matches!(event, Event::Button { .. });
        self.events().into_iter().filter(is_button).map(|event| event.to_string()).collect()
    }

    pub fn keys(&mut self) -> Vec<String> {
        let is_key = |event: &Event| matches!(event, Event::Key { .. });
        self.events().into_iter().filter(is_key).map(|event| event.to_string()).collect()
    }

    pub fn pressed(&mut self) -> Vec<String> {
        self.keys().into_iter().filter(|key| key.starts_with("down")).collect()
    }

    /// What a program would have been given, with the map as it was at each key.
    pub fn text(&mut self) -> String {
        let chars = self.events().into_iter().filter_map(|event| match event {
            Event::Key { down: true, symbols, state } => {
                let level = usize::from(state.contains(KeyButMask::SHIFT));
                match symbols[level] {
                    symbol @ 0x20..=0xff => char::from_u32(symbol),
                    symbol if symbol >> 24 == 1 => char::from_u32(symbol & 0xff_ffff),
                    _ => None,
                }
            }
            _ => None,
        });
        chars.collect()
    }
}

fn listen(connection: &RustConnection, seen: &Mutex<Seen>) {
    use x11rb::protocol::Event::*;
    let mut map = Map::read(connection);
    loop {
        let Some(event) = connection.poll_for_event().unwrap() else {
            if seen.lock().unwrap().is_over {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        let button = |down: bool, it: ButtonPressEvent| Event::Button {
            down,
            number: it.detail,
            x: it.root_x,
            y: it.root_y,
            state: it.state,
        };
        let event = match event {
            KeyPress(key) => Event::Key { down: true, symbols: map.symbols(key.detail), state: key.state },
            KeyRelease(key) => Event::Key { down: false, symbols: map.symbols(key.detail), state: key.state },
            ButtonPress(it) => button(true, it),
            ButtonRelease(it) => button(false, it),
            MotionNotify(_) => Event::Motion,
            MappingNotify(_) => {
                map = Map::read(connection);
                continue;
            }
            Expose(_) => {
                seen.lock().unwrap().is_exposed = true;
                continue;
            }
            ClientMessage(_) => {
                seen.lock().unwrap().marks += 1;
                continue;
            }
            _ => continue,
        };
        seen.lock().unwrap().events.push(event);
    }
}

struct Map {
    first: u8,
    width: usize,
    symbols: Vec<u32>,
}

impl Map {
    fn read(connection: &RustConnection) -> Map {
        let setup = connection.setup();
        let (first, last) = (setup.min_keycode, setup.max_keycode);
        let reply = connection.get_keyboard_mapping(first, last - first + 1).unwrap().reply().unwrap();
        Map { first, width: reply.keysyms_per_keycode.into(), symbols: reply.keysyms }
    }

    fn symbols(&self, code: u8) -> Vec<u32> {
        self.symbols.chunks(self.width).nth(usize::from(code - self.first)).unwrap().to_vec()
    }
}

impl Drop for Canvas {
    fn drop(&mut self) {
        let _ = self.connection.destroy_window(self.window);
        let _ = self.connection.get_input_focus().map(|cookie| cookie.reply());
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).is_over = true;
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |down: &bool| if *down { "down" } else { "up" };
        match self {
            Event::Key { down, symbols, state } => {
                write!(f, "{} {}", word(down), name(symbols[0]))?;
                // Released keys say no more than which.
                if *down && state.contains(KeyButMask::CONTROL) {
                    write!(f, "+ctrl")?;
                }
                let is_modifier = (0xffe1..=0xffee).contains(&symbols[0]);
                if *down && !is_modifier && state.contains(KeyButMask::SHIFT) {
                    write!(f, "+shift")?;
                }
                Ok(())
            }
            Event::Button { down, number, x, y, state } => {
                write!(f, "{} {number} {x},{y}", word(down))?;
                for (mask, name) in [(KeyButMask::SHIFT, "shift"), (KeyButMask::CONTROL, "ctrl")] {
                    if state.contains(mask) {
                        write!(f, " {name}")?;
                    }
                }
                Ok(())
            }
            Event::Motion => write!(f, "motion"),
        }
    }
}

fn name(symbol: u32) -> String {
    let names = [
        (0xff0d, "Return"),
        (0xff1b, "Escape"),
        (0xff51, "Left"),
        (0xff55, "Prior"),
        (0xffe1, "Shift_L"),
        (0xffe3, "Control_L"),
        (0xffeb, "Super_L"),
        (0xffab, "KP_Add"),
        (0xffc2, "F5"),
    ];
    match names.iter().find(|(known, _)| *known == symbol) {
        Some((_, name)) => (*name).to_owned(),
        None => char::from_u32(symbol & 0xff_ffff).map_or_else(|| format!("{symbol:#x}"), String::from),
    }
}
