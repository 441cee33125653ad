//! COPY and ADD: makes the layer from what lies in trees. No sandbox runs, so nothing of the image is trusted with it.
//!
//! Behaves as BuildKit does: a folder's content is copied and not the folder, links on the way to the destination are
//! followed within the image, a folder that is there keeps its owner and mode, one that is made gets the new owner.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;

use super::BuildError;
use super::accounts::{Owner, owner_of};
use super::archive::unpacked;
use super::pattern::Pattern;
use super::plan::{CopyStep, clean};
use super::tree::{Kind, Node, Tree, join, sha256_of, show};
use crate::embedded::layers::tar_writer::{Head, TarWriter, Type};

/// What a COPY takes and how it is called there, found before anything is written.
#[derive(Debug)]
pub struct Selection<'a> {
    pub tree: &'a Tree,
    /// Whole paths in the tree, links followed, with the name that each goes by.
    pub found: Vec<Found>,
}

#[derive(Debug)]
pub struct Found {
    pub path: Vec<u8>,
    pub name: Vec<u8>,
}

/// Finds the sources of a COPY; one that is missing, and a wildcard that finds nothing, is an error.
pub fn select<'a>(step: &CopyStep, tree: &'a Tree, line: usize) -> Result<Selection<'a>, BuildError> {
    let mut found = Vec::new();
    for source in &step.sources {
        let before = found.len();
        let matches: Vec<Vec<u8>> = match Pattern::of_source(source) {
            Some(Ok(pattern)) => {
                tree.paths().filter(|path| pattern.matches(path)).map(<[u8]>::to_vec).collect()
            }
            Some(Err(reason)) => return Err(BuildError::at(line, reason)),
            None => vec![source.as_bytes().to_vec()],
        };
        for path in matches {
            let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec();
            let resolved = tree.resolve(&path)?;
            if tree.get(&resolved).is_some() {
                found.push(Found { path: resolved, name });
            }
        }
        if found.len() == before {
            let place = if step.from.is_some() { "there" } else { "in the build context" };
            return Err(BuildError::at(line, format!("/{source} is not {place}")));
        }
    }
    Ok(Selection { tree, found })
}

impl Selection<'_> {
    /// A digest of everything that the copy takes: names, kinds, modes and contents, but no times.
    pub fn digest(&self, mut update: impl FnMut(&[u8])) -> Result<(), BuildError> {
        for found in &self.found {
            update(b"source");
            update(&found.name);
            let top = self.tree.get(&found.path).into_iter().map(|node| (found.path.as_slice(), node));
            for (path, node) in top.chain(self.tree.below(&found.path)) {
                let relative = path.get(found.path.len()..).unwrap_or_default();
                update(&(relative.len() as u64).to_le_bytes());
                update(relative);
                update(format!("{:o} {} {}", node.mode, node.uid, node.gid).as_bytes());
                match &node.kind {
                    Kind::File(content) => {
                        update(b"file");
                        let sha256 = match content.sha256 {
                            Some(sha256) => sha256,
                            None => {
                                self.tree.read(content).and_then(|mut input| sha256_of(&mut input)).map_err(
                                    |error| BuildError::Host(format!("read a file to copy: {error}")),
                                )?
                            }
                        };
                        update(&sha256);
                        update(format!("{:?}", content.sparse).as_bytes());
                    }
                    Kind::Dir => update(b"dir"),
                    Kind::Symlink(target) => {
                        update(b"link");
                        update(target);
                    }
                    Kind::Fifo => update(b"fifo"),
                    Kind::Device => update(b"device"),
                }
            }
        }
        Ok(())
    }
}

/// Writes the layer that `step` makes on top of `image`. `false`: nothing changes, and there is no layer.
pub fn write_copy(
    step: &CopyStep,
    line: usize,
    selection: &Selection<'_>,
    image: &Tree,
    out: &mut File,
) -> Result<bool, BuildError> {
    let owner = step.chown.as_deref().map(|text| owner_of(text, image)).transpose();
    let owner = owner.map_err(|reason| BuildError::at(line, reason))?;
    let inline = inline_tree(step, image)?;
    let archives = unpack_archives(step, selection, line)?;
    let mut copying = Copying { image, owner, chmod: step.chmod, line, planned: BTreeMap::new() };
    let dest = image.resolve(step.dest.path.trim_start_matches('/').as_bytes())?;
    let dest_is_dir = step.dest.is_dir || image.get(&dest).is_some_and(Node::is_dir);
    for (index, found) in selection.found.iter().enumerate() {
        if let Some(archive) = archives.get(&index) {
            copying.dir(archive, b"", &dest)?;
            continue;
        }
        match selection.tree.get(&found.path) {
            Some(node) if node.is_dir() => copying.dir(selection.tree, &found.path, &dest)?,
            Some(node) => {
                let target = if dest_is_dir { join(&dest, &found.name) } else { dest.clone() };
                copying.file(selection.tree, node, &target)?;
            }
            None => {}
        }
    }
    for (name, _) in &step.inline {
        let name = clean(name).into_bytes();
        let target = if dest_is_dir { join(&dest, &name) } else { dest.clone() };
        let node = inline.get(&name).ok_or_else(|| BuildError::at(line, "a here-document without a name"))?;
        copying.file(&inline, node, &target)?;
    }
    copying.write(out)
}

/// Writes a layer with one folder, owned by root, and its parents. `false`: it is there already.
pub fn write_dir(path: &str, line: usize, image: &Tree, out: &mut File) -> Result<bool, BuildError> {
    let mut copying = Copying { image, owner: None, chmod: None, line, planned: BTreeMap::new() };
    let dir = image.resolve(path.trim_start_matches('/').as_bytes())?;
    match image.get(&dir) {
        Some(node) if node.is_dir() => return Ok(false),
        Some(_) => return Err(BuildError::at(line, format!("{path} is there and is no folder"))),
        None => copying.parents(&join(&dir, b"x"))?,
    }
    copying.write(out)
}

struct Copying<'a> {
    image: &'a Tree,
    owner: Option<Owner>,
    chmod: Option<u32>,
    line: usize,
    /// By their place in the image; parents sort before what is in them.
    planned: BTreeMap<Vec<u8>, Planned<'a>>,
}

struct Planned<'a> {
    node: Node,
    /// Where a file's content is.
    tree: Option<&'a Tree>,
}

impl<'a> Copying<'a> {
    /// The content of folder `source` into `dest`, which is made if it is not there.
    fn dir(&mut self, tree: &'a Tree, source: &[u8], dest: &[u8]) -> Result<(), BuildError> {
        self.parents(&join(dest, b"x"))?;
        if self.image.get(dest).is_none() {
            // Made by this copy: it is as the source is.
            if let Some(node) = tree.get(source).filter(|_| !source.is_empty()) {
                let node = self.changed(node);
                self.planned.insert(dest.to_vec(), Planned { node, tree: None });
            }
        }
        for (path, node) in tree.below(source) {
            let relative = path[source.len()..].strip_prefix(b"/").unwrap_or(&path[source.len()..]);
            let target = join(dest, relative);
            match node.is_dir() {
                false => self.file(tree, node, &target)?,
                true => {
                    let target = self.image.resolve(&target)?;
                    self.parents(&target)?;
                    self.must_be_dir_if_there(&target)?;
                    let node = self.changed(node);
                    self.planned.insert(target, Planned { node, tree: None });
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, tree: &'a Tree, node: &Node, target: &[u8]) -> Result<(), BuildError> {
        // The last name is replaced and not followed; the folders before it are.
        let (dir, name) = split(target);
        let target = join(&self.image.resolve(dir)?, name);
        let here = self.planned.get(&target).map(|planned| &planned.node).or(self.image.get(&target));
        if target.is_empty() || here.is_some_and(Node::is_dir) {
            return Err(self.refused(format!("/{} is a folder and cannot become a file", show(&target))));
        }
        if matches!(node.kind, Kind::Device) {
            return Err(self.refused(format!("/{} would be a device", show(&target))));
        }
        self.parents(&target)?;
        let node = self.changed(node);
        self.planned.insert(target, Planned { node, tree: Some(tree) });
        Ok(())
    }

    /// The folders above `path`: as they are in the image, or new. They stand in the layer either way, because a
    /// layer's folder decides its owner and mode.
    fn parents(&mut self, path: &[u8]) -> Result<(), BuildError> {
        for end in (0..path.len()).filter(|at| path[*at] == b'/') {
            let dir = &path[..end];
            self.must_be_dir_if_there(dir)?;
            if self.planned.contains_key(dir) {
                continue;
            }
            let node = match self.image.get(dir) {
                Some(node) => node.clone(),
                None => {
                    let owner = self.owner.unwrap_or(Owner { uid: 0, gid: 0 });
                    Node::dir(0o755, owner.uid, owner.gid, 0)
                }
            };
            self.planned.insert(dir.to_vec(), Planned { node, tree: None });
        }
        Ok(())
    }

    fn must_be_dir_if_there(&self, path: &[u8]) -> Result<(), BuildError> {
        let here = self.planned.get(path).map(|planned| &planned.node).or(self.image.get(path));
        match here {
            Some(node) if !node.is_dir() => {
                Err(self.refused(format!("/{} is there and is no folder", show(path))))
            }
            _ => Ok(()),
        }
    }

    fn changed(&self, node: &Node) -> Node {
        let mut node = node.clone();
        if let Some(owner) = self.owner {
            (node.uid, node.gid) = (owner.uid, owner.gid);
        }
        if let Some(mode) = self.chmod.filter(|_| !matches!(node.kind, Kind::Symlink(_))) {
            node.mode = mode;
        }
        node
    }

    fn refused(&self, reason: String) -> BuildError {
        BuildError::at(self.line, reason)
    }

    fn write(self, out: &mut File) -> Result<bool, BuildError> {
        if self.planned.is_empty() {
            return Ok(false);
        }
        let failed = |error: std::io::Error| BuildError::Host(format!("write a layer: {error}"));
        let mut tar = TarWriter::new(&mut *out);
        for (path, Planned { node, tree }) in &self.planned {
            let mut head = head(path, node);
            match (&node.kind, tree) {
                (Kind::File(content), Some(tree)) => {
                    head.size = content.size;
                    head.sparse = content.sparse.clone();
                    tar.append_stored(&head, tree.read(content).map_err(failed)?).map_err(failed)?;
                }
                _ => tar.append(&head, None).map_err(failed)?,
            }
        }
        tar.finish().map_err(failed)?;
        Ok(true)
    }
}

/// ADD unpacks what is an archive, whatever its name. By the place in the selection.
fn unpack_archives(
    step: &CopyStep,
    selection: &Selection<'_>,
    line: usize,
) -> Result<BTreeMap<usize, Tree>, BuildError> {
    let mut archives = BTreeMap::new();
    for (index, found) in selection.found.iter().enumerate().filter(|_| step.unpack) {
        if let Some(Node { kind: Kind::File(content), .. }) = selection.tree.get(&found.path)
            && let Some(archive) = unpacked(selection.tree, content, line)?
        {
            archives.insert(index, archive);
        }
    }
    Ok(archives)
}

fn head(path: &[u8], node: &Node) -> Head {
    let mut head = Head::mark(path);
    head.mode = node.mode;
    (head.uid, head.gid) = (node.uid, node.gid);
    (head.mtime_s, head.mtime_ns) = (node.mtime_s, node.mtime_ns);
    head.xattrs = node.xattrs.clone();
    head.kind = match &node.kind {
        Kind::File(_) => Type::File,
        Kind::Dir => Type::Dir,
        Kind::Symlink(target) => {
            head.link = target.clone();
            Type::Symlink
        }
        Kind::Fifo | Kind::Device => Type::Fifo,
    };
    head
}

/// The here-documents as files of a tree of their own.
fn inline_tree(step: &CopyStep, image: &Tree) -> Result<Tree, BuildError> {
    let failed = |error: std::io::Error| BuildError::Host(format!("write a here-document: {error}"));
    let mut tree = Tree::new(image.scratch().to_owned());
    for (name, body) in &step.inline {
        let mut file = tempfile::tempfile_in(image.scratch()).map_err(failed)?;
        file.write_all(body.as_bytes()).map_err(failed)?;
        tree.insert_file(clean(name).as_bytes(), 0o644, file).map_err(failed)?;
    }
    Ok(tree)
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}
