//! One stage on the configuration of its base: variables expanded, paths absolute, users and environments settled.
//! Nothing here depends on what a command does, so the whole stage is planned before its first step is taken.

use std::collections::{BTreeMap, BTreeSet};

use super::BuildError;
use super::lines::HereDoc;
use super::program::{Base, Command, Copy, Network, Program, Run, Verb, Written};
use super::words::{Quotes, Words};
use crate::image::ImageConfig;

pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Of all variables together; a program could not be started with more.
pub const ENV_BYTES_MAX: usize = 512 * 1024;
/// Known without an ARG, as Docker has it.
const PREDEFINED_ARGS: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// How an image says it is run: what a sandbox uses, and what is only passed on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StageConfig {
    pub image: ImageConfig,
    pub exposed_ports: BTreeSet<String>,
    pub volumes: BTreeSet<String>,
    pub stop_signal: Option<String>,
    /// Empty: `/bin/sh -c`.
    pub shell: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagePlan {
    pub steps: Vec<Step>,
    /// What the stage's image says in the end.
    pub config: StageConfig,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub line: usize,
    /// For the log, one line.
    pub text: String,
    pub remarks: Vec<String>,
    pub action: Action,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Run(RunStep),
    Copy(CopyStep),
    /// A folder that must be there, absolute, owned by root.
    MakeDir(String),
    /// Changes the configuration alone; its effect is in the plan already.
    Configure,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RunStep {
    /// The program and its arguments; never empty.
    pub argv: Vec<String>,
    /// The image's and the build arguments in scope.
    pub env: BTreeMap<String, String>,
    /// As USER has it, `root` by default.
    pub user: String,
    pub work_dir: String,
    pub network: Network,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyStep {
    /// `None`: the build context.
    pub from: Option<Base>,
    /// Below the source's root, cleaned, no leading slash; may hold wildcards.
    pub sources: Vec<String>,
    /// (name, content)
    pub inline: Vec<(String, String)>,
    pub dest: Dest,
    /// `user[:group]`, names or numbers.
    pub chown: Option<String>,
    pub chmod: Option<u32>,
    /// Sources that are archives are unpacked.
    pub unpack: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dest {
    /// Absolute and clean.
    pub path: String,
    /// Written with a slash at its end: a folder whatever the sources are.
    pub is_dir: bool,
}

/// What every step after it is taken with.
struct Scope<'a> {
    program: &'a Program,
    build_args: &'a BTreeMap<String, String>,
    /// In scope: declared by ARG, with a value.
    args: BTreeMap<String, String>,
    config: StageConfig,
    cmd_is_ours: bool,
}

impl Program {
    /// The steps of stage `index`, of which `base` is the configuration of what it begins with.
    pub fn plan(
        &self,
        index: usize,
        base: &StageConfig,
        build_args: &BTreeMap<String, String>,
    ) -> Result<StagePlan, BuildError> {
        let stage = &self.stages[index];
        let mut scope = Scope {
            program: self,
            build_args,
            args: BTreeMap::new(),
            config: base.clone(),
            cmd_is_ours: false,
        };
        for name in PREDEFINED_ARGS {
            if let Some(value) = build_args.get(name) {
                scope.args.insert(name.to_owned(), value.clone());
            }
        }
        let mut steps = Vec::with_capacity(stage.instructions.len());
        for written in &stage.instructions {
            let action = scope.take(written).map_err(|reason| BuildError::at(written.line, reason))?;
            scope.check_size().map_err(|reason| BuildError::at(written.line, reason))?;
            let Written { line, text, remarks, .. } = written.clone();
            steps.push(Step { line, text, remarks, action });
        }
        Ok(StagePlan { steps, config: scope.config })
    }
}

impl Scope<'_> {
    fn take(&mut self, written: &Written) -> Result<Action, String> {
        match &written.verb {
            Verb::Arg(pairs) => self.declare(pairs)?,
            Verb::Env(pairs) => {
                for (name, value) in self.expand_pairs(pairs)? {
                    self.set_env(&name, &value)?;
                }
            }
            Verb::Label(pairs) => {
                let pairs = self.expand_pairs(pairs)?;
                self.config.image.labels.extend(pairs);
            }
            Verb::WorkDir(path) => {
                let dir = self.absolute(&self.expand(path)?);
                self.config.image.work_dir = Some(dir.clone());
                return Ok(Action::MakeDir(dir));
            }
            Verb::User(user) => {
                let user = self.expand(user)?;
                if user.is_empty() {
                    return Err("USER names nobody".into());
                }
                self.config.image.user = Some(user);
            }
            Verb::Run(run) => return self.run(run).map(Action::Run),
            Verb::Copy(copy) => return self.copy(copy).map(Action::Copy),
            Verb::Entrypoint(command) => {
                self.config.image.entrypoint = self.argv(command);
                // A command of the base was for the base's entry point.
                if !self.cmd_is_ours {
                    self.config.image.cmd.clear();
                }
            }
            Verb::Cmd(command) => {
                self.config.image.cmd = self.argv(command);
                self.cmd_is_ours = true;
            }
            Verb::Shell(words) => self.config.shell = words.clone(),
            Verb::Expose(ports) => {
                for port in self.expand_all(ports)?.iter().flat_map(|ports| ports.split_whitespace()) {
                    self.config.exposed_ports.insert(port_of(port)?);
                }
            }
            Verb::Volume(paths) => {
                for path in self.expand_all(paths)? {
                    if path.is_empty() {
                        return Err("VOLUME names nothing".into());
                    }
                    self.config.volumes.insert(path);
                }
            }
            Verb::StopSignal(signal) => self.config.stop_signal = Some(self.expand(signal)?),
            Verb::Ignored => {}
        }
        Ok(Action::Configure)
    }

    /// ENV is stronger than ARG, whatever their order.
    fn lookup(&self, name: &str) -> Option<String> {
        let of_env = self.env(name).map(str::to_owned);
        of_env
            .or_else(|| self.args.get(name).cloned())
            .or_else(|| (name == "PATH").then(|| DEFAULT_PATH.to_owned()))
    }

    fn env(&self, name: &str) -> Option<&str> {
        let variables = self.config.image.env.iter().filter_map(|pair| pair.split_once('='));
        variables.filter(|(known, _)| *known == name).map(|(_, value)| value).next_back()
    }

    fn set_env(&mut self, name: &str, value: &str) -> Result<(), String> {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(format!("{name:?} is no name for a variable"));
        }
        let pair = format!("{name}={value}");
        let env = &mut self.config.image.env;
        match env.iter_mut().find(|known| known.split_once('=').is_some_and(|(known, _)| known == name)) {
            Some(known) => *known = pair,
            None => env.push(pair),
        }
        Ok(())
    }

    fn check_size(&self) -> Result<(), String> {
        let env: usize = self.config.image.env.iter().map(String::len).sum();
        let args: usize = self.args.values().map(String::len).sum();
        let labels: usize =
            self.config.image.labels.iter().map(|(name, value)| name.len() + value.len()).sum();
        match env + args + labels <= ENV_BYTES_MAX {
            true => Ok(()),
            false => Err(format!("variables and labels have more than {ENV_BYTES_MAX} bytes together")),
        }
    }

    fn declare(&mut self, pairs: &[(String, Option<String>)]) -> Result<(), String> {
        let mut declared = Vec::new();
        for (name, default) in pairs {
            let default = default.as_deref().map(|raw| self.expand(raw)).transpose()?;
            let global = || self.program.global_args.get(name).cloned();
            let value = self.build_args.get(name).cloned().or(default).or_else(global);
            declared.extend(value.map(|value| (name.clone(), value)));
        }
        self.args.extend(declared);
        Ok(())
    }

    fn expand(&self, raw: &str) -> Result<String, String> {
        Words::new(self.program.escape, Quotes::Process).expand(raw, &|name| self.lookup(name))
    }

    fn expand_all(&self, raw: &[String]) -> Result<Vec<String>, String> {
        raw.iter().map(|raw| self.expand(raw)).collect()
    }

    fn expand_pairs(&self, pairs: &[(String, String)]) -> Result<Vec<(String, String)>, String> {
        pairs.iter().map(|(name, value)| Ok((self.expand(name)?, self.expand(value)?))).collect()
    }

    fn absolute(&self, path: &str) -> String {
        let base = self.config.image.work_dir.as_deref().unwrap_or("/");
        match path.starts_with('/') {
            true => format!("/{}", clean(path)),
            false => format!("/{}", clean(&format!("{base}/{path}"))),
        }
    }

    fn argv(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(argv) => argv.clone(),
            Command::Shell(text) => {
                let mut argv = self.config.shell.clone();
                if argv.is_empty() {
                    argv = vec!["/bin/sh".to_owned(), "-c".to_owned()];
                }
                argv.push(text.clone());
                argv
            }
        }
    }

    fn run(&self, run: &Run) -> Result<RunStep, String> {
        let argv = match (&run.command, run.script) {
            (Command::Shell(body), true) => as_script(body),
            (command, _) => self.argv(command),
        };
        if argv.iter().all(|word| word.is_empty()) || argv.iter().any(|word| word.contains('\0')) {
            return Err("RUN needs a command".into());
        }
        let mut env = self.args.clone();
        env.extend(self.config.image.env.iter().filter_map(|pair| {
            pair.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
        }));
        env.entry("PATH".to_owned()).or_insert_with(|| DEFAULT_PATH.to_owned());
        Ok(RunStep {
            argv,
            env,
            user: self.config.image.user.clone().filter(|user| !user.is_empty()).unwrap_or("root".into()),
            work_dir: self.absolute("."),
            network: run.network,
        })
    }

    fn copy(&self, copy: &Copy) -> Result<CopyStep, String> {
        let raw_dest = self.expand(&copy.dest)?;
        if raw_dest.is_empty() {
            return Err("the destination is empty".into());
        }
        let is_dir = raw_dest.ends_with('/') || raw_dest == "." || raw_dest.ends_with("/.");
        let dest = Dest { path: self.absolute(&raw_dest), is_dir };
        let sources: Vec<String> =
            self.expand_all(&copy.sources)?.iter().map(|source| clean(source)).collect();
        let several = sources.len() + copy.here_docs.len() > 1;
        if several && !dest.is_dir {
            return Err("several sources need a destination that ends with /".into());
        }
        let contents = Words::new(self.program.escape, Quotes::Keep);
        let inline = |doc: &HereDoc| {
            let body = match doc.expand {
                true => contents.expand(&doc.body, &|name| self.lookup(name))?,
                false => doc.body.clone(),
            };
            Ok((doc.name.clone(), body))
        };
        Ok(CopyStep {
            from: copy.from.clone(),
            sources,
            inline: copy.here_docs.iter().map(inline).collect::<Result<_, String>>()?,
            dest,
            chown: copy.chown.as_deref().map(|raw| self.expand(raw)).transpose()?,
            chmod: copy.chmod.as_deref().map(|raw| mode_of(&self.expand(raw)?)).transpose()?,
            unpack: copy.unpack,
        })
    }
}

/// A here-document that names its own interpreter becomes a file for as long as it runs.
fn as_script(body: &str) -> Vec<String> {
    let wrapper = "f=$(mktemp /tmp/script.XXXXXX) && printf %s \"$1\" >\"$f\" && chmod 700 \"$f\" && \"$f\"; \
                   s=$?; rm -f \"$f\"; exit $s";
    ["/bin/sh", "-c", wrapper, "script", body].map(str::to_owned).to_vec()
}

fn mode_of(text: &str) -> Result<u32, String> {
    let is_octal = (3..=5).contains(&text.len()) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    match u32::from_str_radix(text, 8) {
        Ok(mode) if is_octal && mode <= 0o7777 => Ok(mode),
        _ => Err(format!("--chmod takes octal digits like 0755, not {text:?}")),
    }
}

fn port_of(text: &str) -> Result<String, String> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    let is_range = port.split_once('-').is_some_and(|(from, to)| is_port(from) && is_port(to));
    let protocol = protocol.to_ascii_lowercase();
    match (is_port(port) || is_range) && matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        true => Ok(format!("{port}/{protocol}")),
        false => Err(format!("{text} is no port")),
    }
}

/// Without leading and double slashes, `.` and `..`; never above the root.
pub fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests;
