//! A whole Dockerfile, checked: what it cannot do is said with its line before anything runs.
//!
//! Words are still as written: most can only be expanded when the base image's environment is known (see `plan`).

use std::collections::BTreeMap;

use parse_dockerfile as parse;
use parse_dockerfile::Instruction;

use super::BuildError;
use super::lines::{HereDoc, Joined, LIFTED, join};
use super::words::{Quotes, Words, pairs};

pub const STAGES_MAX: usize = 64;
pub const INSTRUCTIONS_MAX: usize = 2048;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub escape: char,
    /// Before the first FROM, in order, with defaults expanded.
    pub global_args: BTreeMap<String, String>,
    pub stages: Vec<Stage>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    pub line: usize,
    pub name: Option<String>,
    pub base: Base,
    pub instructions: Vec<Written>,
}

/// What a stage, or a COPY, begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    Scratch,
    /// By its place in the Dockerfile; always an earlier one.
    Stage(usize),
    Image(String),
}

/// An instruction as it stands in the Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub line: usize,
    /// For the log, one line.
    pub text: String,
    pub verb: Verb,
    /// What is left out, for the log.
    pub remarks: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    Arg(Vec<(String, Option<String>)>),
    Env(Vec<(String, String)>),
    Label(Vec<(String, String)>),
    WorkDir(String),
    User(String),
    Run(Run),
    Copy(Copy),
    Entrypoint(Command),
    Cmd(Command),
    Shell(Vec<String>),
    Expose(Vec<String>),
    Volume(Vec<String>),
    StopSignal(String),
    /// Does nothing here; its remark says so.
    Ignored,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Begins with the program.
    Exec(Vec<String>),
    /// For the SHELL.
    Shell(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub command: Command,
    /// A here-document that begins with `#!`, run as a program of its own.
    pub script: bool,
    pub network: Network,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Network {
    Open,
    Blocked,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// `None`: the build context.
    pub from: Option<Base>,
    pub sources: Vec<String>,
    pub here_docs: Vec<HereDoc>,
    pub dest: String,
    pub chown: Option<String>,
    pub chmod: Option<String>,
    /// ADD: local archives are unpacked.
    pub unpack: bool,
}

/// `build_args` override what ARG says, where an ARG names them.
pub(crate) fn read(text: &str, build_args: &BTreeMap<String, String>) -> Result<Program, BuildError> {
    let joined = join(text)?;
    let dockerfile = parse::parse(&joined.text).map_err(|error| {
        let message = error.to_string();
        // The crate ends its message with the place, which is ours to say.
        let reason = message.rsplit_once(" (line").map_or(message.as_str(), |(reason, _)| reason);
        let reason = reason.rsplit_once(" at line").map_or(reason, |(reason, _)| reason);
        BuildError::at(error.line(), reason)
    })?;
    if dockerfile.instructions.len() > INSTRUCTIONS_MAX {
        return Err(BuildError::at(1, format!("more than {INSTRUCTIONS_MAX} instructions")));
    }
    let mut reader = Reader { joined: &joined, stages: Vec::new() };
    let mut global_args = platform_args();
    for arg in dockerfile.global_args() {
        reader.global_arg(arg, build_args, &mut global_args)?;
    }
    for stage in dockerfile.stages() {
        let read = reader.stage(&stage, &global_args)?;
        reader.stages.push(read);
        if reader.stages.len() > STAGES_MAX {
            return Err(BuildError::at(1, format!("more than {STAGES_MAX} stages")));
        }
    }
    Ok(Program { escape: joined.escape, global_args, stages: reader.stages })
}

/// What BuildKit gives every Dockerfile.
fn platform_args() -> BTreeMap<String, String> {
    let arch = host_architecture();
    let mut args = BTreeMap::new();
    for side in ["TARGET", "BUILD"] {
        args.insert(format!("{side}PLATFORM"), format!("linux/{arch}"));
        args.insert(format!("{side}OS"), "linux".into());
        args.insert(format!("{side}ARCH"), arch.into());
    }
    args
}

/// As OCI names it.
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

struct Reader<'a> {
    joined: &'a Joined,
    stages: Vec<Stage>,
}

impl Reader<'_> {
    fn words(&self) -> Words {
        Words::new(self.joined.escape, Quotes::Process)
    }

    fn global_arg(
        &self,
        arg: &parse::ArgInstruction<'_>,
        build_args: &BTreeMap<String, String>,
        known: &mut BTreeMap<String, String>,
    ) -> Result<(), BuildError> {
        let line = self.joined.line_of(arg.arg.span.start);
        for (name, default) in self.arg_pairs(line, &arg.arguments.value)? {
            let value = match (build_args.get(&name), default) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(raw)) => Some(
                    self.words()
                        .expand(&raw, &|name| known.get(name).cloned())
                        .map_err(|reason| BuildError::at(line, reason))?,
                ),
                (None, None) => None,
            };
            if let Some(value) = value {
                known.insert(name, value);
            }
        }
        Ok(())
    }

    fn stage(
        &self,
        stage: &parse::Stage<'_, '_>,
        global_args: &BTreeMap<String, String>,
    ) -> Result<Stage, BuildError> {
        let line = self.joined.line_of(stage.from.from.span.start);
        let expand = |raw: &str| {
            self.words()
                .expand(raw, &|name| global_args.get(name).cloned())
                .map_err(|reason| BuildError::at(line, reason))
        };
        for flag in &stage.from.options {
            let value = flag.value.as_ref().map(|value| expand(&value.value)).transpose()?;
            let here = format!("linux/{}", host_architecture());
            match (&*flag.name.value, value.as_deref()) {
                ("platform", Some(platform)) if platform == here || platform.is_empty() => {}
                ("platform", Some(platform)) => {
                    return Err(BuildError::at(
                        line,
                        format!("platform {platform}: this node builds for {here}"),
                    ));
                }
                (name, _) => return Err(BuildError::at(line, format!("FROM has no flag --{name}"))),
            }
        }
        let reference = expand(&stage.from.image.value)?;
        if reference.is_empty() {
            return Err(BuildError::at(line, format!("FROM {} names no image", stage.from.image.value)));
        }
        let name = stage.from.as_.as_ref().map(|(_, name)| name.value.to_ascii_lowercase());
        if let Some(name) = &name {
            let is_name = name.starts_with(|c: char| c.is_ascii_lowercase())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
            if !is_name {
                return Err(BuildError::at(
                    line,
                    format!("{name} is no name for a stage: [a-z][a-z0-9-_.]*"),
                ));
            }
        }
        let instructions: Result<Vec<Written>, BuildError> =
            stage.instructions.iter().map(|instruction| self.instruction(instruction)).collect();
        Ok(Stage { line, name, base: self.base(&reference), instructions: instructions? })
    }

    /// Of FROM: stages go by their names only.
    fn base(&self, reference: &str) -> Base {
        let wanted = reference.to_ascii_lowercase();
        match self.stages.iter().position(|stage| stage.name.as_ref() == Some(&wanted)) {
            Some(index) => Base::Stage(index),
            None if reference == "scratch" => Base::Scratch,
            None => Base::Image(reference.to_owned()),
        }
    }

    fn instruction(&self, instruction: &Instruction<'_>) -> Result<Written, BuildError> {
        let span = start_of(instruction);
        let line = self.joined.line_of(span);
        let refused = |reason: &str| BuildError::at(line, reason);
        let mut remarks = Vec::new();
        let verb = match instruction {
            Instruction::Arg(arg) => Verb::Arg(self.arg_pairs(line, &arg.arguments.value)?),
            Instruction::Env(env) => Verb::Env(self.pairs(line, "ENV", &env.arguments.value)?),
            Instruction::Label(label) => Verb::Label(self.pairs(line, "LABEL", &label.arguments.value)?),
            Instruction::Workdir(dir) => Verb::WorkDir(dir.arguments.value.to_string()),
            Instruction::User(user) => Verb::User(user.arguments.value.to_string()),
            Instruction::Run(run) => Verb::Run(self.run(line, run, &mut remarks)?),
            Instruction::Copy(copy) => {
                let sources = Sources { flags: &copy.options, src: &copy.src, dest: &copy.dest.value };
                Verb::Copy(self.copy(line, "COPY", sources)?)
            }
            Instruction::Add(add) => {
                let sources = Sources { flags: &add.options, src: &add.src, dest: &add.dest.value };
                Verb::Copy(self.copy(line, "ADD", sources)?)
            }
            Instruction::Entrypoint(entrypoint) => Verb::Entrypoint(command(&entrypoint.arguments)),
            Instruction::Cmd(cmd) => Verb::Cmd(command(&cmd.arguments)),
            Instruction::Shell(shell) => {
                Verb::Shell(shell.arguments.iter().map(|word| word.value.to_string()).collect())
            }
            Instruction::Expose(expose) => {
                Verb::Expose(expose.arguments.iter().map(|port| port.value.to_string()).collect())
            }
            Instruction::Volume(volume) => {
                let (parse::JsonOrStringArray::String(words)
                | parse::JsonOrStringArray::Json(parse::Spanned { value: words, .. })) = &volume.arguments;
                remarks.push("VOLUME is recorded and makes no volume".to_owned());
                Verb::Volume(words.iter().map(|word| word.value.to_string()).collect())
            }
            Instruction::Stopsignal(signal) => Verb::StopSignal(signal.arguments.value.to_string()),
            Instruction::Healthcheck(_) => {
                remarks.push("HEALTHCHECK is ignored: a sandbox says itself when it is ready".to_owned());
                Verb::Ignored
            }
            Instruction::Maintainer(_) => {
                remarks.push("MAINTAINER is ignored; use LABEL".to_owned());
                Verb::Ignored
            }
            Instruction::Onbuild(_) => return Err(refused("ONBUILD is not supported")),
            Instruction::From(_) => return Err(refused("FROM within a stage")),
            _ => return Err(refused("an instruction that is not known here")),
        };
        let text = self.joined.text.lines().nth(line - 1).unwrap_or_default();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ").replace(LIFTED, "<<");
        let written = Written { line, text, verb, remarks };
        written.check_words(self.joined.escape)?;
        Ok(written)
    }

    fn arg_pairs(&self, line: usize, text: &str) -> Result<Vec<(String, Option<String>)>, BuildError> {
        let pairs = pairs(text, self.joined.escape).map_err(|reason| BuildError::at(line, reason))?;
        match pairs.iter().find(|(name, _)| name.is_empty()) {
            Some(_) => Err(BuildError::at(line, "ARG needs a name")),
            None => Ok(pairs),
        }
    }

    fn pairs(&self, line: usize, verb: &str, text: &str) -> Result<Vec<(String, String)>, BuildError> {
        let refused = |reason: String| BuildError::at(line, reason);
        let pairs = pairs(text, self.joined.escape).map_err(refused)?;
        // The old form: everything after the first word is the value.
        if pairs.first().is_some_and(|(_, value)| value.is_none()) {
            let text = text.trim();
            let (name, value) = text
                .split_once(char::is_whitespace)
                .ok_or_else(|| refused(format!("{verb} needs a name and a value")))?;
            return Ok(vec![(name.to_owned(), value.trim_start().to_owned())]);
        }
        pairs
            .into_iter()
            .map(|(name, value)| match value {
                Some(value) if !name.is_empty() => Ok((name, value)),
                _ => Err(refused(format!("{verb} takes name=value, which {name} is not"))),
            })
            .collect()
    }

    fn here_docs(&self, line: usize) -> impl Iterator<Item = &HereDoc> {
        self.joined.here_docs.iter().filter(move |(of, _)| *of == line).map(|(_, doc)| doc)
    }

    fn run(
        &self,
        line: usize,
        run: &parse::RunInstruction<'_>,
        remarks: &mut Vec<String>,
    ) -> Result<Run, BuildError> {
        let mut network = Network::Open;
        for flag in &run.options {
            let value = flag.value.as_ref().map(|value| &*value.value).unwrap_or_default();
            let refused = |reason: String| Err(BuildError::at(line, reason));
            match &*flag.name.value {
                "network" if value == "none" => network = Network::Blocked,
                "network" if value == "default" => {}
                "security" if value == "sandbox" => {}
                "mount" => match mount_type(value) {
                    kind @ ("cache" | "tmpfs") => {
                        remarks.push(format!("--mount=type={kind} is ignored: the folder is the image's own"))
                    }
                    kind => return refused(format!("RUN --mount=type={kind} is not supported")),
                },
                name @ ("network" | "security") => {
                    return refused(format!("RUN --{name}={value} is not supported"));
                }
                name => return refused(format!("RUN has no flag --{name}")),
            }
        }
        let mut docs = self.here_docs(line).peekable();
        let shell = match command(&run.arguments) {
            exec @ Command::Exec(_) => return Ok(Run { command: exec, script: false, network }),
            Command::Shell(text) => text,
        };
        if docs.peek().is_none() {
            if shell.trim().is_empty() {
                return Err(BuildError::at(line, "RUN needs a command"));
            }
            return Ok(Run { command: Command::Shell(shell), script: false, network });
        }
        let is_alone = shell.split_whitespace().count() == 1
            && shell.trim_start_matches(|c: char| c.is_ascii_digit()).starts_with(LIFTED);
        if is_alone && let Some(doc) = docs.next() {
            let script = doc.body.starts_with("#!");
            return Ok(Run { command: Command::Shell(doc.body.clone()), script, network });
        }
        // The shell reads them itself.
        let mut text = shell.replace(LIFTED, "<<");
        for doc in docs {
            text.push_str(&format!("\n{}{}", doc.body, doc.name));
        }
        Ok(Run { command: Command::Shell(text), script: false, network })
    }

    fn copy(&self, line: usize, verb: &str, written: Sources<'_, '_>) -> Result<Copy, BuildError> {
        let refused = |reason: String| BuildError::at(line, reason);
        let mut copy = Copy {
            from: None,
            sources: Vec::new(),
            here_docs: Vec::new(),
            dest: written.dest.to_owned(),
            chown: None,
            chmod: None,
            unpack: verb == "ADD",
        };
        for flag in written.flags {
            let value = flag.value.as_ref().map(|value| value.value.to_string());
            match (&*flag.name.value, value) {
                ("from", Some(from)) if verb == "COPY" => copy.from = Some(self.copy_from(line, &from)?),
                ("chown", Some(owner)) => copy.chown = Some(owner),
                ("chmod", Some(mode)) => copy.chmod = Some(mode),
                // Only a hint about caching.
                ("link", _) => {}
                (name, _) => return Err(refused(format!("{verb} --{name} is not supported"))),
            }
        }
        let mut docs = self.here_docs(line);
        for source in written.src {
            let parse::Source::Path(path) = source else {
                return Err(refused("a here-document that was not understood".into()));
            };
            let path = path.value.to_string();
            if path.contains(LIFTED) {
                copy.here_docs.extend(docs.next().cloned());
                continue;
            }
            let is_remote = ["http://", "https://", "git://", "git@"].iter().any(|it| path.starts_with(it));
            if copy.unpack && is_remote {
                return Err(refused("ADD of a URL is not supported; fetch it with RUN".into()));
            }
            copy.sources.push(path);
        }
        let several = copy.sources.len() + copy.here_docs.len() > 1;
        if several && !copy.dest.ends_with('/') && !copy.dest.ends_with('.') && !copy.dest.contains('$') {
            return Err(refused(format!("{verb} of several sources needs a destination that ends with /")));
        }
        Ok(copy)
    }

    fn copy_from(&self, line: usize, from: &str) -> Result<Base, BuildError> {
        if let Ok(index) = from.parse::<usize>() {
            return match index < self.stages.len() {
                true => Ok(Base::Stage(index)),
                false => Err(BuildError::at(line, format!("there is no earlier stage {index}"))),
            };
        }
        Ok(self.base(from))
    }
}

struct Sources<'a, 'b> {
    flags: &'a [parse::Flag<'b>],
    src: &'a [parse::Source<'b>],
    dest: &'a str,
}

impl Written {
    /// Finds syntax that no environment could make right.
    fn check_words(&self, escape: char) -> Result<(), BuildError> {
        let words = Words::new(escape, Quotes::Process);
        let raw: Vec<&str> = match &self.verb {
            Verb::Arg(pairs) => pairs.iter().filter_map(|(_, value)| value.as_deref()).collect(),
            Verb::Env(pairs) | Verb::Label(pairs) => {
                pairs.iter().flat_map(|(name, value)| [name.as_str(), value]).collect()
            }
            Verb::WorkDir(word) | Verb::User(word) | Verb::StopSignal(word) => vec![word],
            Verb::Expose(words) | Verb::Volume(words) => words.iter().map(String::as_str).collect(),
            Verb::Copy(copy) => {
                let flags = [&copy.chown, &copy.chmod].into_iter().flatten();
                copy.sources.iter().chain([&copy.dest]).chain(flags).map(String::as_str).collect()
            }
            Verb::Run(_) | Verb::Entrypoint(_) | Verb::Cmd(_) | Verb::Shell(_) | Verb::Ignored => vec![],
        };
        // With every name set, `${NAME:?}` is content.
        let check = |raw| words.expand(raw, &|_| Some("x".into())).map(drop);
        raw.into_iter().try_for_each(check).map_err(|reason| BuildError::at(self.line, reason))
    }
}

fn mount_type(value: &str) -> &str {
    value.split(',').find_map(|part| part.strip_prefix("type=")).unwrap_or("bind")
}

fn command(command: &parse::Command<'_>) -> Command {
    match command {
        parse::Command::Exec(words) => {
            Command::Exec(words.value.iter().map(|word| word.value.to_string()).collect())
        }
        parse::Command::Shell(text) => Command::Shell(text.value.trim().to_owned()),
        // The crate may grow a third form; an empty command is refused by who runs it.
        _ => Command::Exec(Vec::new()),
    }
}

fn start_of(instruction: &Instruction<'_>) -> usize {
    let keyword = match instruction {
        Instruction::Add(it) => &it.add,
        Instruction::Arg(it) => &it.arg,
        Instruction::Cmd(it) => &it.cmd,
        Instruction::Copy(it) => &it.copy,
        Instruction::Entrypoint(it) => &it.entrypoint,
        Instruction::Env(it) => &it.env,
        Instruction::Expose(it) => &it.expose,
        Instruction::From(it) => &it.from,
        Instruction::Healthcheck(it) => &it.healthcheck,
        Instruction::Label(it) => &it.label,
        Instruction::Maintainer(it) => &it.maintainer,
        Instruction::Onbuild(it) => &it.onbuild,
        Instruction::Run(it) => &it.run,
        Instruction::Shell(it) => &it.shell,
        Instruction::Stopsignal(it) => &it.stopsignal,
        Instruction::User(it) => &it.user,
        Instruction::Volume(it) => &it.volume,
        Instruction::Workdir(it) => &it.workdir,
        _ => return 0,
    };
    keyword.span.start
}
