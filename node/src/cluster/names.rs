//! Names that are only ever added, in memory and in a file.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::files::Files;

/// The names. Whoever asks for one never waits for the disk.
#[derive(Debug)]
pub(crate) struct Names<T> {
    known: Mutex<BTreeSet<T>>,
    /// What the file has; locked while it is written.
    written: Mutex<BTreeSet<T>>,
    files: Files,
    file: &'static str,
}

impl<T: Ord + Clone + Display> Names<T> {
    /// Reads the file, if there is one.
    pub(super) fn open(files: &Files, file: &'static str) -> anyhow::Result<Self>
    where
        T: FromStr,
        T::Err: Display,
    {
        let names = files.names(file)?;
        Ok(Self {
            known: Mutex::new(names.clone()),
            written: Mutex::new(names),
            files: files.clone(),
            file,
        })
    }

    /// Adds names, in memory; returns whether any is new.
    pub(super) fn add(&self, names: &BTreeSet<T>) -> bool {
        let mut known = lock(&self.known);
        let is_news = !names.is_subset(&known);
        if is_news {
            known.extend(names.iter().cloned());
        }
        is_news
    }

    /// Writes down what is not in the file yet.
    pub(super) fn write(&self) -> io::Result<()> {
        let mut written = lock(&self.written);
        let known = self.all();
        if known != *written {
            self.files.write_names(self.file, &known)?;
            *written = known;
        }
        Ok(())
    }

    /// Returns all.
    pub(super) fn all(&self) -> BTreeSet<T> {
        lock(&self.known).clone()
    }

    /// Whether it is among them.
    pub(super) fn contains(&self, name: &T) -> bool {
        lock(&self.known).contains(name)
    }
}

fn lock<T>(names: &Mutex<BTreeSet<T>>) -> MutexGuard<'_, BTreeSet<T>> {
    names.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use zdap_proto::name::UserName;

    use super::*;

    #[test]
    fn what_could_not_be_written_counts_and_is_written_when_it_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::of(directory.path());
        let names = Names::<UserName>::open(&files, "revoked").unwrap();
        let ada = BTreeSet::from(["ada".parse().unwrap()]);
        assert!(names.add(&ada));
        let file = directory.path().join("revoked");
        std::fs::create_dir(&file).unwrap();
        names.write().unwrap_err();
        assert_eq!(names.all(), ada);
        assert!(!names.add(&ada));
        names.write().unwrap_err();

        std::fs::remove_dir(&file).unwrap();
        names.write().unwrap();
        assert_eq!(Names::<UserName>::open(&files, "revoked").unwrap().all(), ada);
    }
}
