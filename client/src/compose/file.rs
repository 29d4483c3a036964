//! The files themselves: read as text, replaced whole.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{MetadataExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};

use super::ComposeError;

/// Reads a file whole.
pub fn read(path: &Path) -> Result<String, ComposeError> {
    let bytes = fs::read(path).map_err(|source| {
        if source.kind() == ErrorKind::NotFound {
            ComposeError::Missing {
                path: path.to_owned(),
            }
        } else {
            failed("read", path, source)
        }
    })?;
    String::from_utf8(bytes).map_err(|error| ComposeError::NotText {
        path: path.to_owned(),
        offset: error.utf8_error().valid_up_to(),
    })
}

/// Replaces the file's text by what `change` makes of it; an absent file counts as an empty one.
///
/// A reader sees the old text or the new one, never a part; that nobody else writes meanwhile is for the caller
/// to see to. Mode, and where possible owner, stay; a link stays a link. On failure, and where the text is the
/// same afterwards, nothing is touched.
pub fn edit(
    path: &Path,
    change: impl FnOnce(&str) -> Result<String, ComposeError>,
) -> Result<(), ComposeError> {
    let target = follow_links(path).map_err(|source| failed("follow the link", path, source))?;
    let directory = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    let existing = Existing::at(&target)?;
    let before = existing
        .as_ref()
        .map(|_| read(&target))
        .transpose()?
        .unwrap_or_default();
    let after = change(&before).map_err(|source| ComposeError::InFile {
        path: path.to_owned(),
        source: Box::new(source),
    })?;
    if after == before {
        return Ok(());
    }
    replace(&target, directory, existing, &after).map_err(|source| not_written(path, source))?;
    // The new text is in its place. Whether it outlives a power failure is no reason to say that it is not.
    if let Err(error) = File::open(directory).and_then(|directory| directory.sync_all()) {
        tracing::warn!("cannot sync {}: {error}", directory.display());
    }
    Ok(())
}

/// What a new file takes over from the one it replaces.
struct Existing {
    mode: u32,
    user: u32,
    group: u32,
}

impl Existing {
    fn at(path: &Path) -> Result<Option<Self>, ComposeError> {
        // Renaming over a file asks only its directory; whoever made the file read-only meant it, though.
        let metadata = match OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|file| file.metadata())
        {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(not_written(path, error)),
        };
        if metadata.permissions().readonly() {
            return Err(ComposeError::ReadOnly {
                path: path.to_owned(),
            });
        }
        if !metadata.is_file() {
            return Err(failed(
                "write",
                path,
                io::Error::other("it is not an ordinary file"),
            ));
        }
        Ok(Some(Self {
            mode: metadata.mode() & 0o7777,
            user: metadata.uid(),
            group: metadata.gid(),
        }))
    }
}

fn replace(target: &Path, directory: &Path, existing: Option<Existing>, text: &str) -> io::Result<()> {
    let mut builder = tempfile::Builder::new();
    // For a new file, the process's umask takes from this what it takes from any other.
    let temporary = builder
        .prefix(".zdap-")
        .permissions(Permissions::from_mode(0o666));
    let mut file = temporary.tempfile_in(directory)?;
    file.write_all(text.as_bytes())?;
    if let Some(Existing { mode, user, group }) = existing {
        // Only root may give a file away; for others it becomes theirs, as with any editor.
        let _ = fchown(file.as_file(), Some(user), Some(group));
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
    }
    file.as_file().sync_all()?;
    file.persist(target).map(drop).map_err(|error| error.error)
}

/// Follows a link to the end, also where nothing is there yet.
fn follow_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(link) => path = path.parent().unwrap_or_else(|| Path::new("")).join(link),
            // The end of the chain: not a link, or nothing at all.
            Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::NotFound) => {
                return Ok(path);
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("too many links"))
}

fn not_written(path: &Path, source: io::Error) -> ComposeError {
    if matches!(
        source.kind(),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
    ) {
        ComposeError::ReadOnly {
            path: path.to_owned(),
        }
    } else {
        failed("write", path, source)
    }
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> ComposeError {
    ComposeError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// As many as Linux follows.
const MAX_LINKS: usize = 40;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = fs::read_dir(directory).unwrap().map(name).collect();
        names.sort();
        names
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn an_edit_keeps_the_mode_and_leaves_nothing_beside_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("o.yml");
        edit(&path, |text| Ok(format!("{text}a\n"))).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        edit(&path, |text| Ok(format!("{text}b\n"))).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "a\nb\n");
        assert_eq!(mode(&path), 0o640);
        assert_eq!(names(directory.path()), ["o.yml"]);
    }

    #[test]
    fn a_change_that_fails_or_changes_nothing_leaves_the_file_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("o.yml");
        edit(&path, |text| Ok(text.to_owned())).unwrap();
        assert_eq!(names(directory.path()), Vec::<String>::new());
        fs::write(&path, "a").unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        edit(&path, |text| Ok(text.to_owned())).unwrap();
        let error = edit(&path, |_| Err(ComposeError::ServiceName { name: "/".to_owned() })).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot use {}", path.display()));
        assert!(error.hint().is_some());
        assert_eq!(
            (names(directory.path()), fs::metadata(&path).unwrap().ino()),
            (vec!["o.yml".to_owned()], inode)
        );
    }

    #[test]
    fn a_link_stays_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let (shared, link) = (directory.path().join("shared"), directory.path().join("o.yml"));
        fs::create_dir(&shared).unwrap();
        symlink("shared/real.yml", &link).unwrap();
        for expected in ["a", "aa"] {
            edit(&link, |text| Ok(format!("{text}a"))).unwrap();
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
            assert_eq!(fs::read_to_string(shared.join("real.yml")).unwrap(), expected);
        }
        let circle = directory.path().join("circle");
        symlink("circle", &circle).unwrap();
        assert!(edit(&circle, |text| Ok(text.to_owned())).is_err());
    }

    #[test]
    fn what_cannot_be_written_or_read_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("o.yml");
        fs::write(&path, b"ab\xff").unwrap();
        let append = |text: &str| Ok(format!("{text}b"));
        let shown = path.display();
        assert_eq!(
            edit(&path, append).unwrap_err().to_string(),
            format!("{shown} is not UTF-8 text: byte 2 is wrong")
        );
        fs::write(&path, "a").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
        assert_eq!(
            edit(&path, append).unwrap_err().to_string(),
            format!("{shown} is read-only")
        );
        let missing = directory.path().join("missing");
        assert_eq!(
            read(&missing).unwrap_err().to_string(),
            format!("{} does not exist", missing.display())
        );
        assert!(matches!(
            edit(&missing.join("o.yml"), append),
            Err(ComposeError::Io { .. })
        ));
        assert!(edit(directory.path(), append).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "a");
    }
}
