//! Makes a draft of one store what a tree of another one is. The draft is a copy of what the tree was made from, so only
//! what differs is written.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, Stat, linkat, mkdirat, unlinkat};
use rustix::io::Errno;

use super::sides::{Inode, Seen, Step, Trees, Walk, inode};
use crate::attributes::{self, Marks};
use crate::copy::{self, Content};
use crate::error::At;
use crate::walk::{self, is_directory, kind};
use crate::{Changes, Root, StoreError};

/// Makes `draft`, which equals `changes.below` or is empty, equal to `changes.tree`. Returns how many bytes of files
/// were written. Errors name entries below `place`.
pub(super) fn write(changes: &Changes, draft: &Root, place: &Path) -> Result<u64, StoreError> {
    let mount = |root: &Root| root.mount().at("mount", place);
    let own = changes.own.as_deref().map(|own| walk::open_path(own).at("read", own)).transpose()?;
    let trees = Trees { below: changes.below.as_ref().map(mount).transpose()?, tree: mount(&changes.tree)?, own };
    let target = mount(draft)?;
    let mut at = Vec::new();
    write_tree(&trees, &target, &mut at)
        .map_err(|error| StoreError::disk("copy", place.join(OsStr::from_bytes(&at)), error))
}

/// `at` becomes the path of what could not be copied.
fn write_tree(trees: &Trees, root: &OwnedFd, at: &mut Vec<u8>) -> io::Result<u64> {
    let changed = match &trees.below {
        Some(_) => Walk::start(trees)?.changed_links()?,
        None => HashSet::new(),
    };
    let mut walk = Walk::start(trees)?;
    let is_changed = walk.differs(&walk.root()?)?;
    let mut target = Target {
        root,
        directory: walk::open(root, c".")?,
        is_touched: vec![is_changed],
        names: HashMap::new(),
        bytes: 0,
    };
    let written = (|| {
        while let Some(step) = walk.next()? {
            at.clone_from(&walk.path);
            match step {
                Step::Entry(seen) => {
                    at.extend_from_slice(seen.name.to_bytes());
                    target.entry(&mut walk, &seen, &changed)?;
                }
                Step::End => target.end(&mut walk)?,
            }
        }
        Ok(())
    })();
    written.map(|()| target.bytes)
}

/// The draft, at the place where the walk is.
struct Target<'a> {
    root: &'a OwnedFd,
    directory: OwnedFd,
    /// For each directory from the root to here, whether it or anything in it was written.
    is_touched: Vec<bool>,
    /// The first name of each file written that has several.
    names: HashMap<Inode, Vec<u8>>,
    bytes: u64,
}

impl Target<'_> {
    fn entry(&mut self, walk: &mut Walk, seen: &Seen, changed: &HashSet<Inode>) -> io::Result<()> {
        match &seen.new {
            None => self.remove(&seen.name),
            Some(new) if is_directory(new) => {
                let is_changed = walk.differs(seen)?;
                if !seen.was_directory() {
                    if seen.old.is_some() {
                        self.remove(&seen.name)?;
                    }
                    mkdirat(&self.directory, &seen.name, Mode::RWXU)?;
                }
                walk.enter(seen)?;
                self.directory = walk::open(&self.directory, &seen.name)?;
                self.is_touched.push(is_changed);
                Ok(())
            }
            Some(new) if changed.contains(&inode(new)) || walk.differs(seen)? => {
                if seen.old.is_some() {
                    self.remove(&seen.name)?;
                }
                self.touch();
                self.write(walk, &seen.name, new)
            }
            Some(_) => Ok(()),
        }
    }

    /// Leaves a directory. Its attributes come last, since writing in it changes its times.
    fn end(&mut self, walk: &mut Walk) -> io::Result<()> {
        let is_touched = self.is_touched.pop().unwrap_or_default();
        if is_touched {
            attributes::copy(walk.directory(), &self.directory, Marks::Dropped)?;
            self.remove_foreign(walk, c".")?;
            // On overlayfs this has copied the directories above, too.
            self.touch();
        }
        walk.leave()?;
        if !self.is_touched.is_empty() {
            self.directory = walk::open(&self.directory, c"..")?;
        }
        Ok(())
    }

    fn touch(&mut self) {
        if let Some(here) = self.is_touched.last_mut() {
            *here = true;
        }
    }

    fn write(&mut self, walk: &Walk, name: &CStr, new: &Stat) -> io::Result<()> {
        if new.st_nlink > 1 {
            if let Some(first) = self.names.get(&inode(new)) {
                match self.link(first, name) {
                    // It has all the names that the filesystem allows: another copy.
                    Err(Errno::MLINK) => {}
                    linked => return Ok(linked?),
                }
            }
            self.names.insert(inode(new), [&walk.path, name.to_bytes()].concat());
        }
        copy::file(walk.directory(), &self.directory, name, Content::Shared)?;
        self.remove_foreign(walk, name)?;
        if kind(new) == FileType::RegularFile {
            self.bytes += new.st_size.cast_unsigned();
        }
        Ok(())
    }

    /// Gives the file at the path `first` the name `name` here.
    fn link(&self, first: &[u8], name: &CStr) -> Result<(), Errno> {
        let mut parts = first.split(|&byte| byte == b'/');
        let file = parts.next_back().unwrap_or_default();
        // Not by the path: it may be longer than the kernel takes.
        let mut directory = walk::open(self.root, c".")?;
        for part in parts {
            directory = walk::open(&directory, part)?;
        }
        linkat(&directory, file, &self.directory, name, AtFlags::empty())
    }

    /// Removes extended attributes that the original does not have: what the entry had before, or took from the default
    /// access list of its directory.
    fn remove_foreign(&self, walk: &Walk, name: &CStr) -> io::Result<()> {
        let found = walk::extended(&self.directory, name)?;
        if found.is_empty() {
            return Ok(());
        }
        let kept = walk::extended(walk.directory(), name)?;
        let foreign = found.iter().filter(|(name, _)| kept.iter().all(|(kept, _)| kept != name));
        for (attribute, _) in foreign {
            rustix::fs::lremovexattr(walk::path_in(&self.directory, name), &**attribute)?;
        }
        Ok(())
    }

    /// Removes `name`, with all that is in it.
    fn remove(&mut self, name: &CStr) -> io::Result<()> {
        self.touch();
        match unlinkat(&self.directory, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {}
            removed => return Ok(removed?),
        }
        let mut directory = walk::open(&self.directory, name)?;
        // The directories that are being emptied, from the top, and what is left in them.
        let mut levels = vec![(name.to_owned(), walk::names(&directory)?)];
        while let Some((_, names)) = levels.last_mut() {
            let Some(child) = names.pop() else {
                directory = walk::open(&directory, c"..")?;
                if let Some((name, _)) = levels.pop() {
                    unlinkat(&directory, &name, AtFlags::REMOVEDIR)?;
                }
                continue;
            };
            match unlinkat(&directory, &child, AtFlags::empty()) {
                Err(Errno::ISDIR) => {
                    directory = walk::open(&directory, &child)?;
                    levels.push((child, walk::names(&directory)?));
                }
                removed => removed?,
            }
        }
        Ok(())
    }
}
