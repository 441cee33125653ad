//! Takes the steps of a Dockerfile's last stage, and of those it builds on, over a [`BuildHost`]. What the cache knows
//! is not done again; a build in which it knows everything opens no layer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::BuildError;
use super::copy::{select, write_copy, write_dir};
use super::host::{BaseAccess, BaseImage, BuildHost, Made};
use super::key::Key;
use super::log::BuildLog;
use super::oci::config_json;
use super::pattern::{IGNORE_FILE, Ignore};
use super::plan::{Action, CopyStep, RunStep, StageConfig, Step};
use super::program::{Base, Program, Verb, read};
use super::tree::{Dialect, Hashing, Kind, Tree};
use crate::image::{Compression, Digest, Image, ImageConfig, Layer};

const IGNORE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug)]
pub struct BuildRequest {
    pub dockerfile: String,
    pub build_args: BTreeMap<String, String>,
    /// Uncompressed tars, laid over each other in this order.
    pub contexts: Vec<File>,
    pub access: Arc<dyn BaseAccess>,
}

/// Builds the last stage. `scratch` is a folder for nameless temporary files.
pub async fn build(
    host: &dyn BuildHost,
    request: BuildRequest,
    scratch: &Path,
    log: &BuildLog,
) -> Result<Image, BuildError> {
    let program = read(&request.dockerfile, &request.build_args)?;
    let needed = needed_stages(&program);
    let last = program.stages.len() - 1;
    let mut executor = Executor {
        host,
        log,
        program: &program,
        build_args: &request.build_args,
        scratch: scratch.to_owned(),
        contexts: request.contexts,
        access: request.access,
        context: None,
        stages: HashMap::new(),
        images: HashMap::new(),
        step: 0,
        steps: needed.iter().map(|index| program.stages[*index].instructions.len() + 1).sum(),
    };
    for index in needed {
        executor.stage(index).await?;
    }
    let stage = executor.stages.remove(&last).ok_or_else(|| BuildError::at(1, "no stage to build"))?;
    host.add_image(config_json(&stage.config, &stage.layers), &stage.layers).await
}

/// The last one and what it refers to, in the order of the Dockerfile.
fn needed_stages(program: &Program) -> BTreeSet<usize> {
    let mut needed = BTreeSet::new();
    let mut todo = vec![program.stages.len() - 1];
    while let Some(index) = todo.pop() {
        if !needed.insert(index) {
            continue;
        }
        let stage = &program.stages[index];
        let copied = stage.instructions.iter().filter_map(|written| match &written.verb {
            Verb::Copy(copy) => copy.from.as_ref(),
            _ => None,
        });
        todo.extend(copied.chain([&stage.base]).filter_map(|base| match base {
            Base::Stage(index) => Some(*index),
            Base::Image(_) | Base::Scratch => None,
        }));
    }
    needed
}

/// A stage as far as it has come.
#[derive(Clone)]
struct Built {
    config: StageConfig,
    layers: Vec<Layer>,
    /// Covers the layers and everything that they depend on.
    chain: Digest,
    /// What the first so many layers show, once somebody has asked.
    tree: Option<(Arc<Tree>, usize)>,
}

struct Executor<'a> {
    host: &'a dyn BuildHost,
    log: &'a BuildLog,
    program: &'a Program,
    build_args: &'a BTreeMap<String, String>,
    scratch: PathBuf,
    contexts: Vec<File>,
    access: Arc<dyn BaseAccess>,
    /// Laid when the first COPY asks for it.
    context: Option<Arc<Tree>>,
    stages: HashMap<usize, Built>,
    /// By reference.
    images: HashMap<String, Built>,
    step: usize,
    steps: usize,
}

impl Executor<'_> {
    async fn stage(&mut self, index: usize) -> Result<(), BuildError> {
        let stage = &self.program.stages[index];
        let name = stage.name.as_ref().map(|name| format!(" AS {name}")).unwrap_or_default();
        let base = match &stage.base {
            Base::Image(reference) => reference.clone(),
            Base::Stage(index) => self.program.stages[*index].name.clone().unwrap_or(index.to_string()),
            Base::Scratch => "scratch".to_owned(),
        };
        self.announce(&format!("FROM {base}{name}"), &[]);
        let mut built = self.base(&stage.base, stage.line).await?;
        let plan = self.program.plan(index, &built.config, self.build_args)?;
        for step in &plan.steps {
            self.announce(&step.text, &step.remarks);
            self.take(step, &mut built).await?;
        }
        built.config = plan.config;
        self.stages.insert(index, built);
        Ok(())
    }

    fn announce(&mut self, text: &str, remarks: &[String]) {
        self.step += 1;
        self.log.line(&format!("Step {}/{} : {text}", self.step, self.steps));
        for remark in remarks {
            self.log.line(&format!(" ---> [note] {remark}"));
        }
    }

    async fn base(&mut self, base: &Base, line: usize) -> Result<Built, BuildError> {
        match base {
            Base::Stage(index) => self
                .stages
                .get(index)
                .cloned()
                .ok_or_else(|| BuildError::at(line, "a stage that was not built")),
            Base::Scratch => {
                let layers = Vec::new();
                Ok(Built { config: StageConfig::default(), chain: Key::base(&layers), layers, tree: None })
            }
            Base::Image(reference) => {
                if let Some(known) = self.images.get(reference) {
                    return Ok(known.clone());
                }
                let found = self.host.base(reference, &*self.access, self.log).await;
                let BaseImage { image, config } = found.map_err(|error| match error {
                    BuildError::Host(reason) => BuildError::at(line, format!("{reference}: {reason}")),
                    error => error,
                })?;
                let chain = Key::base(&image.layers);
                let built = Built { config, layers: image.layers, chain, tree: None };
                self.images.insert(reference.clone(), built.clone());
                Ok(built)
            }
        }
    }

    async fn take(&mut self, step: &Step, built: &mut Built) -> Result<(), BuildError> {
        let line = step.line;
        let (key, source) = match &step.action {
            Action::Configure => return Ok(()),
            Action::MakeDir(path) => (Key::dir(&built.chain, path), None),
            Action::Run(run) => (Key::run(&built.chain, run), None),
            Action::Copy(copy) => {
                let (key, source) = self.copy_key(line, copy, built).await?;
                (key, Some(source))
            }
        };
        let made = match self.host.cached(&key).await {
            Some(made) => {
                self.log.line(" ---> Using cache");
                made
            }
            None => {
                let made = match (&step.action, source) {
                    (Action::MakeDir(path), _) => {
                        let path = path.clone();
                        self.make(built, move |image, out| write_dir(&path, line, image, out)).await?
                    }
                    (Action::Copy(copy), Some(source)) => {
                        let (copy, source) = (copy.clone(), self.source_tree(source).await?);
                        let write = move |image: &Tree, out: &mut File| {
                            write_copy(&copy, line, &select(&copy, &source, line)?, image, out)
                        };
                        self.make(built, write).await?
                    }
                    (Action::Run(run), _) => self.run(step, run, built).await?,
                    (Action::Copy(_) | Action::Configure, _) => None,
                };
                self.host.remember(&key, &made).await;
                made
            }
        };
        built.chain = Key::after(&key, &made);
        built.layers.extend(made);
        Ok(())
    }

    async fn run(&self, step: &Step, run: &RunStep, built: &Built) -> Result<Made, BuildError> {
        if built.layers.is_empty() {
            return Err(BuildError::at(step.line, "scratch has no program to run: copy one there first"));
        }
        let image = Image {
            reference: format!("step of line {}", step.line),
            // Known before the image is whole, unlike a configuration's digest, and as unique.
            id: Some(built.chain),
            layers: built.layers.clone(),
            config: ImageConfig::default(),
        };
        let ran = self.host.run(&image, run, self.log).await?;
        match ran.exit_code {
            0 => Ok(ran.layer),
            exit_code => Err(BuildError::Command { line: step.line, step: step.text.clone(), exit_code }),
        }
    }

    /// Of the context the content counts; of a stage or an image, what it was made from, so that nothing of it need be
    /// opened.
    async fn copy_key(
        &mut self,
        line: usize,
        copy: &CopyStep,
        built: &Built,
    ) -> Result<(Digest, Source), BuildError> {
        if let Some(from) = &copy.from {
            let from = self.base(from, line).await?;
            return Ok((Key::copy_from(&built.chain, copy, &from.chain), Source::Built(Box::new(from))));
        }
        let context = self.context().await?;
        let (parent, copy, tree) = (built.chain, copy.clone(), context.clone());
        let key = blocking(move || Key::copy(&parent, &copy, &select(&copy, &tree, line)?)).await?;
        Ok((key, Source::Context(context)))
    }

    async fn source_tree(&mut self, source: Source) -> Result<Arc<Tree>, BuildError> {
        match source {
            Source::Context(tree) => Ok(tree),
            Source::Built(mut built) => self.tree(&mut built).await,
        }
    }

    /// Has a layer written on top of what the stage shows so far.
    async fn make(
        &mut self,
        built: &mut Built,
        write: impl FnOnce(&Tree, &mut File) -> Result<bool, BuildError> + Send + 'static,
    ) -> Result<Made, BuildError> {
        let image = self.tree(built).await?;
        let written = blocking(move || {
            let mut out = tempfile::tempfile_in(image.scratch()).map_err(no_scratch)?;
            let changed = write(&image, &mut out)?;
            out.rewind().map_err(no_scratch)?;
            Ok(changed.then_some(out))
        });
        match written.await? {
            Some(tar) => self.host.add_layer(tar).await.map(Some),
            None => Ok(None),
        }
    }

    async fn tree(&mut self, built: &mut Built) -> Result<Arc<Tree>, BuildError> {
        let (tree, laid) =
            built.tree.take().unwrap_or_else(|| (Arc::new(Tree::new(self.scratch.clone())), 0));
        let mut blobs = Vec::new();
        for layer in &built.layers[laid..] {
            blobs.push((self.host.open(layer).await?, layer.compression));
        }
        let tree = blocking(move || {
            let mut tree = Arc::unwrap_or_clone(tree);
            for (blob, compression) in blobs {
                tree.lay(blob, compression, Dialect::Layer, Hashing::Nothing)?;
            }
            Ok(Arc::new(tree))
        })
        .await?;
        built.tree = Some((tree.clone(), built.layers.len()));
        Ok(tree)
    }

    async fn context(&mut self) -> Result<Arc<Tree>, BuildError> {
        if let Some(context) = &self.context {
            return Ok(context.clone());
        }
        let (contexts, scratch) = (std::mem::take(&mut self.contexts), self.scratch.clone());
        let context = blocking(move || {
            let mut tree = Tree::new(scratch);
            for tar in contexts {
                tree.lay(tar, Compression::None, Dialect::Context, Hashing::Contents)?;
            }
            without_ignored(tree)
        });
        let context = Arc::new(context.await?);
        self.context = Some(context.clone());
        Ok(context)
    }
}

enum Source {
    Context(Arc<Tree>),
    Built(Box<Built>),
}

fn without_ignored(mut context: Tree) -> Result<Tree, BuildError> {
    let Some(Kind::File(content)) = context.get(IGNORE_FILE.as_bytes()).map(|node| &node.kind) else {
        return Ok(context);
    };
    let mut text = String::new();
    let read = context.read(content).and_then(|input| input.take(IGNORE_BYTES_MAX).read_to_string(&mut text));
    read.map_err(|error| BuildError::Context(format!("read {IGNORE_FILE}: {error}")))?;
    let ignore =
        Ignore::parse(&text).map_err(|reason| BuildError::Context(format!("{IGNORE_FILE}: {reason}")))?;
    // Folders stay: something in them may be shown again.
    context.retain(|path, node| node.is_dir() || !ignore.hides(path));
    let shown: BTreeSet<Vec<u8>> = context
        .paths()
        .filter(|path| !ignore.hides(path))
        .flat_map(|path| (0..path.len()).filter(|at| path[*at] == b'/').map(|end| path[..end].to_vec()))
        .collect();
    context.retain(|path, _| !ignore.hides(path) || shown.contains(path));
    Ok(context)
}

fn no_scratch(error: std::io::Error) -> BuildError {
    BuildError::Host(format!("cannot write a temporary file of a build: {error}; free some disk"))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BuildError> + Send + 'static,
) -> Result<T, BuildError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(BuildError::Host(format!("a disk task broke off: {error}"))))
}

#[cfg(test)]
mod tests;
