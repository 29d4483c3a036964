//! A directory of resource files -> what is in service.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zdap_proto::name::ResourceName;

use super::parse::{Parsed, parse};
use super::{Position, Resource, ResourceError};

/// The resources in service, and what keeps other files out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Catalogue {
    /// What can be restored and cloned. No name or alias is there twice.
    pub resources: BTreeMap<ResourceName, Arc<Resource>>,
    /// What is wrong, by file.
    pub errors: Vec<ResourceError>,
}

impl Catalogue {
    /// Reads every `*.resource.yml` below `directory` into the catalogue that follows `previous`.
    ///
    /// Symbolic links are followed, each directory is entered once, and names that begin with a dot are passed over:
    /// they are editors' own files, and the old versions beside a mounted Kubernetes ConfigMap. A file that is bad is
    /// reported, and its last good version stays until it is good again or gone. Of two files that claim one name, that
    /// which has it already keeps it, else the first by path has it.
    pub fn read(directory: &Path, previous: &Self) -> Self {
        let mut listing = Listing::default();
        listing.enter(directory);
        listing.files.sort();
        let mut errors = listing.errors;
        let mut read = Vec::new();
        for file in listing.files {
            match read_file(&file) {
                Ok(parsed) => read.push(parsed),
                Err(error) => errors.push(error),
            }
        }
        Self::following(previous, read, errors)
    }

    /// Returns the resource of that name, or else of that alias.
    pub fn find(&self, name: &ResourceName) -> Option<&Arc<Resource>> {
        let by_alias = || {
            self.resources
                .values()
                .find(|resource| resource.alias.as_deref() == Some(name.as_str()))
        };
        self.resources.get(name).or_else(by_alias)
    }

    fn following(previous: &Self, mut read: Vec<Parsed>, errors: Vec<ResourceError>) -> Self {
        let kept = previous
            .resources
            .iter()
            .filter(|(_, resource)| errors.iter().any(|error| resource.file.starts_with(&error.file)));
        let mut next = Self {
            resources: kept
                .map(|(name, resource)| (name.clone(), resource.clone()))
                .collect(),
            errors,
        };
        // Those that have not changed, then those that have, then newcomers: nobody loses a name to one who comes later.
        read.sort_by_cached_key(|parsed| {
            let resource = &parsed.resource;
            let rank = match previous.resources.get(&resource.name) {
                Some(old) if **old == *resource => 0,
                Some(old) if old.file == resource.file => 1,
                Some(_) | None => 2,
            };
            (rank, resource.file.clone())
        });
        for parsed in read {
            match next.conflict(&parsed) {
                None => next.insert(Arc::new(parsed.resource)),
                Some(error) => {
                    next.errors.push(error);
                    let old = previous
                        .resources
                        .values()
                        .find(|old| old.file == parsed.resource.file);
                    if let Some(old) = old.filter(|old| next.holder(old.name.as_str()).is_none()) {
                        next.insert(old.clone());
                    }
                }
            }
        }
        next.errors
            .sort_by(|one, other| (&one.file, one.position).cmp(&(&other.file, other.position)));
        next
    }

    fn insert(&mut self, resource: Arc<Resource>) {
        self.resources.insert(resource.name.clone(), resource);
    }

    /// Returns whose name or alias `name` is.
    fn holder(&self, name: &str) -> Option<&Resource> {
        let has = |resource: &&Arc<Resource>| {
            resource.name.as_str() == name || resource.alias.as_deref() == Some(name)
        };
        self.resources.values().find(has).map(AsRef::as_ref)
    }

    fn conflict(&self, parsed: &Parsed) -> Option<ResourceError> {
        let resource = &parsed.resource;
        let error = |key: &str, name: &str, position: Position, holder: &Resource| ResourceError {
            file: resource.file.clone(),
            position: Some(position),
            key: Some(key.to_owned()),
            message: format!("`{name}` is taken by {}", holder.file.display()),
        };
        let name = resource.name.as_str();
        if let Some(holder) = self.holder(name) {
            return Some(error("name", name, parsed.name, holder));
        }
        let alias = resource.alias.as_deref()?;
        let holder = self.holder(alias)?;
        Some(error("alias", alias, parsed.alias?, holder))
    }
}

/// The files there are to read.
#[derive(Debug, Default)]
struct Listing {
    files: Vec<PathBuf>,
    errors: Vec<ResourceError>,
    /// The directories that have been entered, by their real paths.
    entered: BTreeSet<PathBuf>,
}

impl Listing {
    fn enter(&mut self, directory: &Path) {
        let real = match fs::canonicalize(directory) {
            Ok(real) => real,
            Err(error) => return self.refuse(directory, format!("cannot be read: {error}")),
        };
        if !self.entered.insert(real) {
            return;
        }
        let listed = fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut entries = match listed {
            Ok(entries) => entries,
            Err(error) => return self.refuse(directory, format!("cannot be read: {error}")),
        };
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            self.add(&entry.path(), &entry.file_name());
        }
    }

    fn add(&mut self, path: &Path, name: &OsStr) {
        let name = name.as_encoded_bytes();
        let is_named_so = name.ends_with(SUFFIX.as_bytes());
        if name.starts_with(b".") {
            return;
        }
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() && is_named_so => {
                self.refuse(path, "is a directory, but named as a resource file".to_owned());
            }
            Ok(metadata) if metadata.is_dir() => self.enter(path),
            Ok(metadata) if metadata.is_file() && is_named_so => self.files.push(path.to_owned()),
            Ok(_) if is_named_so => self.refuse(path, "is not a regular file".to_owned()),
            Err(error) if is_named_so => self.refuse(path, format!("cannot be read: {error}")),
            Ok(_) | Err(_) => {}
        }
    }

    fn refuse(&mut self, path: &Path, message: String) {
        self.errors.push(error(path, message));
    }
}

fn read_file(file: &Path) -> Result<Parsed, ResourceError> {
    let unreadable = |source: io::Error| error(file, format!("cannot be read: {source}"));
    let size = fs::metadata(file).map_err(unreadable)?.len();
    if size > MOST_BYTES {
        let message = format!("is {size} bytes long; a resource file has at most {MOST_BYTES}");
        return Err(error(file, message));
    }
    let bytes = fs::read(file).map_err(unreadable)?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => parse(text, file),
        Err(source) => {
            let before = &bytes[..source.valid_up_to()];
            let lines = before.split(|byte| *byte == b'\n');
            let column = lines.clone().next_back().map(String::from_utf8_lossy);
            let position = Position {
                line: lines.count(),
                column: column.map_or(0, |text| text.chars().count()) + 1,
            };
            Err(ResourceError {
                position: Some(position),
                ..error(file, "is not UTF-8 text".to_owned())
            })
        }
    }
}

fn error(path: &Path, message: String) -> ResourceError {
    ResourceError {
        file: path.to_owned(),
        position: None,
        key: None,
        message,
    }
}

const SUFFIX: &str = ".resource.yml";
/// A generous hundred times what a real one has.
const MOST_BYTES: u64 = 256 * 1024;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::testing::{resource_file, script};
    use super::*;

    fn names(catalogue: &Catalogue) -> Vec<&str> {
        catalogue.resources.keys().map(ResourceName::as_str).collect()
    }

    fn shown(catalogue: &Catalogue, directory: &Path) -> Vec<String> {
        let prefix = format!("{}/", directory.display());
        catalogue
            .errors
            .iter()
            .map(|error| error.to_string().replace(&prefix, ""))
            .collect()
    }

    fn read(directory: &Path) -> Catalogue {
        Catalogue::read(directory, &Catalogue::default())
    }

    #[test]
    fn every_resource_file_below_the_directory_is_read_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        resource_file(root, "b.resource.yml", "b");
        resource_file(root, "deep/er/a.resource.yml", "a");
        resource_file(root, ".hidden.resource.yml", "hidden");
        resource_file(root, "..2026/c.resource.yml", "c");
        fs::write(root.join("notes.yml"), "not: a resource").unwrap();
        let catalogue = read(root);
        assert_eq!(names(&catalogue), ["a", "b"]);
        assert_eq!(catalogue.errors, []);
        let file = &catalogue.resources[&"a".parse().unwrap()].file;
        assert_eq!(*file, root.join("deep/er/a.resource.yml"));
    }

    #[test]
    fn symbolic_links_are_followed_and_a_loop_of_them_ends() {
        let elsewhere = tempfile::tempdir().unwrap();
        resource_file(elsewhere.path(), "a.resource.yml", "a");
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        symlink(elsewhere.path(), root.join("linked")).unwrap();
        symlink(root, elsewhere.path().join("back")).unwrap();
        symlink(root, root.join("self")).unwrap();
        let catalogue = read(root);
        assert_eq!(names(&catalogue), ["a"]);
        assert_eq!(catalogue.errors, []);
    }

    #[test]
    fn a_bad_file_is_reported_and_the_others_stay_in_service() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        resource_file(root, "a.resource.yml", "a");
        resource_file(root, "bad.resource.yml", "a/b");
        fs::create_dir(root.join("dir.resource.yml")).unwrap();
        symlink(root.join("nowhere"), root.join("gone.resource.yml")).unwrap();
        fs::write(root.join("latin.resource.yml"), b"name: x\nalias: \xe5\n").unwrap();
        let catalogue = read(root);
        assert_eq!(names(&catalogue), ["a"]);
        assert_eq!(
            shown(&catalogue, root),
            [
                "bad.resource.yml:1:1: name: resource name `a/b` holds '/'; only letters, digits and `._-` are allowed",
                "dir.resource.yml: is a directory, but named as a resource file",
                "gone.resource.yml: cannot be read: No such file or directory (os error 2)",
                "latin.resource.yml:2:8: is not UTF-8 text",
            ]
        );
    }

    #[test]
    fn a_name_or_alias_claimed_twice_names_both_files() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        resource_file(root, "1.resource.yml", "orders\nalias: sales");
        resource_file(root, "2.resource.yml", "orders");
        resource_file(root, "3.resource.yml", "sales");
        resource_file(root, "4.resource.yml", "users\nalias: orders");
        let catalogue = read(root);
        assert_eq!(names(&catalogue), ["orders"]);
        let first = root.join("1.resource.yml");
        let first = first.display();
        let errors: Vec<_> = catalogue.errors.iter().map(ToString::to_string).collect();
        let at = |file: &str| root.join(file).display().to_string();
        assert_eq!(
            errors,
            [
                format!("{}:1:1: name: `orders` is taken by {first}", at("2.resource.yml")),
                format!("{}:1:1: name: `sales` is taken by {first}", at("3.resource.yml")),
                format!(
                    "{}:2:1: alias: `orders` is taken by {first}",
                    at("4.resource.yml")
                ),
            ]
        );
    }

    #[test]
    fn a_newcomer_does_not_take_a_name_that_is_in_service() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        resource_file(root, "z.resource.yml", "orders");
        let before = read(root);
        resource_file(root, "a.resource.yml", "orders");
        let after = Catalogue::read(root, &before);
        assert_eq!(after.resources, before.resources);
        assert_eq!(after.errors.len(), 1);
    }

    #[test]
    fn a_file_that_becomes_bad_keeps_its_last_good_version_until_it_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        resource_file(root, "a.resource.yml", "a");
        let good = read(root);
        fs::write(root.join("a.resource.yml"), "name: [").unwrap();
        let bad = Catalogue::read(root, &good);
        assert_eq!(bad.resources, good.resources);
        assert_eq!(bad.errors.len(), 1);
        let still_bad = Catalogue::read(root, &bad);
        assert_eq!(still_bad, bad);
        fs::remove_file(root.join("a.resource.yml")).unwrap();
        assert_eq!(Catalogue::read(root, &still_bad), Catalogue::default());
    }

    #[test]
    fn a_change_that_claims_a_taken_alias_leaves_the_last_good_version() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        resource_file(root, "a.resource.yml", "a");
        resource_file(root, "b.resource.yml", "b");
        let good = read(root);
        resource_file(root, "a.resource.yml", "a\nalias: b");
        let after = Catalogue::read(root, &good);
        assert_eq!(after.resources, good.resources);
        assert_eq!(after.errors[0].key.as_deref(), Some("alias"));
    }

    #[test]
    fn a_directory_that_cannot_be_read_takes_nothing_out_of_service() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("resources");
        resource_file(&root, "a.resource.yml", "a");
        let good = read(&root);
        fs::rename(&root, directory.path().join("away")).unwrap();
        let away = Catalogue::read(&root, &good);
        assert_eq!(away.resources, good.resources);
        assert_eq!(away.errors[0].file, root);
    }

    #[test]
    fn a_script_that_is_replaced_by_nothing_is_reported() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        resource_file(root, "a.resource.yml", "a");
        fs::remove_file(root.join("create.sh")).unwrap();
        assert_eq!(read(root).errors[0].key.as_deref(), Some("creation"));
        script(&root.join("create.sh"));
        assert_eq!(names(&read(root)), ["a"]);
    }

    #[test]
    fn a_resource_is_found_by_its_name_or_alias() {
        let directory = tempfile::tempdir().unwrap();
        resource_file(directory.path(), "a.resource.yml", "orders\nalias: sales");
        let catalogue = read(directory.path());
        let name = |text: &str| {
            catalogue
                .find(&text.parse().unwrap())
                .map(|found| found.name.to_string())
        };
        assert_eq!(name("orders").as_deref(), Some("orders"));
        assert_eq!(name("sales").as_deref(), Some("orders"));
        assert_eq!(name("users"), None);
    }
}
