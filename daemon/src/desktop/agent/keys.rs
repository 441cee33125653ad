//! The names of keys, and which symbols they mean. Pure: what a caller says is judged before any server is asked.

/// A key by its name: one of the named ones, in any case and with or without underscores, or a single character. Of a letter the key
/// is meant, so its case doesn't matter.
pub fn key(name: &str) -> Result<u32, String> {
    let mut chars = name.chars();
    if let (Some(char), None) = (chars.next(), chars.next())
        && !char.is_control()
    {
        return Ok(symbol_of(char.to_lowercase().next().unwrap_or(char)));
    }
    let plain: String =
        name.chars().filter(|char| !matches!(char, '_' | '-' | ' ')).flat_map(char::to_lowercase).collect();
    let named = NAMED.iter().find(|(names, _)| names.split(' ').any(|name| name == plain));
    if let Some((_, symbol)) = named {
        return Ok(*symbol);
    }
    let number = |prefix: &str| plain.strip_prefix(prefix).and_then(|digits| digits.parse::<u32>().ok());
    match (number("f"), number("num").or(number("numpad")).or(number("kp"))) {
        (Some(number @ 1..=24), _) => Ok(0xffbe + number - 1),
        (_, Some(digit @ 0..=9)) => Ok(0xffb0 + digit),
        _ => Err(format!(
            "no key {:?}: a key is a single character or a name like enter, escape, tab, backspace, up, f5, num_plus, ctrl",
            name.chars().take(40).collect::<String>()
        )),
    }
}

/// What is held while something else is pressed.
pub fn modifiers(names: &[String]) -> Result<Vec<String>, String> {
    let check = |name: &String| match key(name) {
        Ok(symbol) if is_modifier(symbol) => Ok(name.clone()),
        _ => Err(format!(
            "no modifier {:?}: there are ctrl, alt, shift and cmd",
            name.chars().take(40).collect::<String>()
        )),
    };
    names.iter().map(check).collect()
}

/// `ctrl+shift+t`, with or without spaces. A plus itself is the last one: `ctrl++`.
pub fn chord(keys: &str) -> Result<Vec<String>, String> {
    const KEYS_MAX: usize = 8;
    let (front, last) = match keys.trim().strip_suffix('+') {
        Some("") => return Ok(vec!["+".to_owned()]),
        Some(front) => match front.trim_end().strip_suffix('+') {
            Some(front) => (front, Some("+")),
            None => return Err(format!("{keys:?} ends with a plus: write ctrl++ for a plus with ctrl")),
        },
        None => (keys, None),
    };
    let names: Vec<String> = front.split('+').map(str::trim).chain(last).map(str::to_owned).collect();
    if names.len() > KEYS_MAX {
        return Err(format!("a hotkey has at most {KEYS_MAX} keys"));
    }
    if names.iter().any(String::is_empty) {
        return Err(format!(
            "{:?} is no hotkey: write it like ctrl+c",
            keys.chars().take(40).collect::<String>()
        ));
    }
    for name in &names {
        key(name)?;
    }
    Ok(names)
}

pub fn is_modifier(symbol: u32) -> bool {
    (0xffe1..=0xffee).contains(&symbol) || symbol == ISO_LEVEL_3
}

/// Latin-1 characters are their own symbols, all others are so beyond an offset.
pub fn symbol_of(char: char) -> u32 {
    match char {
        '\n' | '\r' => 0xff0d,
        '\t' => 0xff09,
        '\u{8}' => 0xff08,
        '\u{1b}' => 0xff1b,
        '\u{7f}' => 0xffff,
        ' '..='~' | '\u{a0}'..='\u{ff}' => char as u32,
        _ => UNICODE | char as u32,
    }
}

pub const UNICODE: u32 = 0x0100_0000;
pub const SHIFT: u32 = 0xffe1;
const ISO_LEVEL_3: u32 = 0xfe03;

/// Without underscores, all that mean the same in one line.
const NAMED: [(&str, u32); 48] = [
    ("enter return", 0xff0d),
    ("escape esc", 0xff1b),
    ("tab", 0xff09),
    ("space spacebar", 0x20),
    ("backspace", 0xff08),
    ("delete del", 0xffff),
    ("insert ins", 0xff63),
    ("home", 0xff50),
    ("end", 0xff57),
    ("pageup pgup prior", 0xff55),
    ("pagedown pgdn pgdown next", 0xff56),
    ("left arrowleft leftarrow", 0xff51),
    ("up arrowup uparrow", 0xff52),
    ("right arrowright rightarrow", 0xff53),
    ("down arrowdown downarrow", 0xff54),
    ("ctrl control ctrll controll leftctrl leftcontrol lctrl", 0xffe3),
    ("ctrlr controlr rightctrl rightcontrol rctrl", 0xffe4),
    ("shift shiftl leftshift lshift", SHIFT),
    ("shiftr rightshift rshift", 0xffe2),
    ("alt altl option leftalt lalt", 0xffe9),
    ("altr rightalt ralt", 0xffea),
    ("cmd command meta super win windows superl cmdl metal leftcmd leftwin lcmd", 0xffeb),
    ("superr cmdr rightcmd rightwin rcmd", 0xffec),
    ("altgr isolevel3shift", ISO_LEVEL_3),
    ("capslock caps", 0xffe5),
    ("numlock", 0xff7f),
    ("scrolllock", 0xff14),
    ("printscreen print prtsc sysrq", 0xff61),
    ("pause break", 0xff13),
    ("menu contextmenu apps", 0xff67),
    ("numplus numpadplus kpadd numadd", 0xffab),
    ("numminus numpadminus kpsubtract numsubtract", 0xffad),
    ("nummultiply numpadmultiply kpmultiply numasterisk numstar", 0xffaa),
    ("numdivide numpaddivide kpdivide numslash", 0xffaf),
    ("numdecimal numpaddecimal kpdecimal numdot numperiod", 0xffae),
    ("numenter numpadenter kpenter", 0xff8d),
    ("numequal numpadequal kpequal", 0xffbd),
    ("plus", 0x2b),
    ("minus", 0x2d),
    ("comma", 0x2c),
    ("period dot", 0x2e),
    ("slash", 0x2f),
    ("volumeup audioraisevolume", 0x1008_ff13),
    ("volumedown audiolowervolume", 0x1008_ff11),
    ("volumemute mute audiomute", 0x1008_ff12),
    ("playpause audioplay", 0x1008_ff14),
    ("help", 0xff6a),
    ("clear", 0xff0b),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_several_names_in_any_case() {
        for (names, symbol) in [
            (&["enter", "Return", "ENTER"][..], 0xff0d),
            (&["esc", "Escape"], 0xff1b),
            (&["Page_Up", "pageup", "PgUp", "page up"], 0xff55),
            (&["a", "A"], 0x61),
            (&["f1", "F1"], 0xffbe),
            (&["F12"], 0xffc9),
            (&["num_5", "KP_5"], 0xffb5),
            (&["num_plus", "KP_Add"], 0xffab),
            (&["ctrl", "Control", "Control_L"], 0xffe3),
            (&["cmd", "win", "meta", "Super"], 0xffeb),
            (&["+", "plus"], 0x2b),
            (&["é", "É"], 0xe9),
            (&["я"], UNICODE | 0x44f),
        ] {
            for name in names {
                assert_eq!(key(name), Ok(symbol), "{name}");
            }
        }
        for bad in ["", "f0", "f25", "num_10", "nosuch", "ab", "\n"] {
            assert!(key(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_name_means_two_keys() {
        let mut names: Vec<&str> = NAMED.iter().flat_map(|(names, _)| names.split(' ')).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn a_hotkey_is_keys_with_pluses_between() {
        for (keys, expected) in [
            ("ctrl+c", &["ctrl", "c"][..]),
            ("ctrl + shift + T", &["ctrl", "shift", "T"]),
            ("shift", &["shift"]),
            ("ctrl++", &["ctrl", "+"]),
            ("ctrl + +", &["ctrl", "+"]),
            ("+", &["+"]),
        ] {
            assert_eq!(chord(keys).unwrap(), expected, "{keys}");
        }
        for bad in ["", "ctrl+", "+c", "ctrl++c", "ctrl+nosuch", "a+b+c+d+e+f+g+h+i", " "] {
            assert!(chord(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_modifiers_are_held() {
        assert!(modifiers(&["Ctrl".into(), "option".into(), "cmd".into(), "shift".into()]).is_ok());
        assert!(modifiers(&["enter".into()]).is_err() && modifiers(&["a".into()]).is_err());
    }
}
