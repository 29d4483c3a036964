//! The PostgreSQL versions on this machine, and which of them an image means.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::runtime::RuntimeError;

/// Server programs on this machine, by major version.
#[derive(Debug, Clone)]
pub(super) struct Installations(BTreeMap<u32, Installation>);

/// One version's programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Installation {
    /// Where `postgres` and `initdb` are.
    pub(super) programs: PathBuf,
}

impl Installations {
    /// Looks where distributions put them, then on the `PATH`, then where `pg_config` says.
    pub(super) fn find() -> Result<Self, RuntimeError> {
        let mut found = BTreeMap::new();
        for programs in candidates() {
            if !programs.join("initdb").is_file() {
                continue;
            }
            if let Some(major) = version_of(&programs.join("postgres")) {
                found.entry(major).or_insert(Installation { programs });
            }
        }
        match found.is_empty() {
            true => Err(RuntimeError::Unsupported {
                message:
                    "no PostgreSQL server was found on this machine: neither in /usr/lib/postgresql/*/bin \
                          nor as `postgres` and `initdb` on the PATH"
                        .to_owned(),
                hint: "install the PostgreSQL server (Debian: `apt-get install postgresql`), or use \
                       `--runtime docker`"
                    .to_owned(),
            }),
            false => Ok(Self(found)),
        }
    }

    /// Returns the programs for data of version `data`, or, if there is none yet, of the version that `image` names;
    /// the newest if it names none.
    pub(super) fn choose(&self, image: &str, data: Option<u32>) -> Result<&Installation, RuntimeError> {
        let Some(wanted) = data.or_else(|| image_version(image)) else {
            return Ok(self.newest());
        };
        self.0.get(&wanted).ok_or_else(|| RuntimeError::Unsupported {
            message: match data {
                Some(_) => format!("the data is PostgreSQL {wanted}'s, which is not on this machine"),
                None => format!("PostgreSQL {wanted}, for image `{image}`, is not on this machine"),
            },
            hint: format!(
                "install it (Debian: `apt-get install postgresql-{wanted}`) or use `--runtime docker`; here: {}",
                self.majors()
            ),
        })
    }

    fn newest(&self) -> &Installation {
        let (_, installation) = self.0.last_key_value().expect("find refuses to find none");
        installation
    }

    fn majors(&self) -> String {
        self.0.keys().map(u32::to_string).collect::<Vec<_>>().join(", ")
    }
}

/// Returns the major version that an image's tag names: 15 for `postgres:15.4-bookworm`, `postgis/postgis:15-3.4` and
/// `timescale/timescaledb:2.14.2-pg15`; nothing for `postgres` and `postgres:latest`.
pub(super) fn image_version(image: &str) -> Option<u32> {
    let image = image.split('@').next().unwrap_or(image);
    let (_, tag) = image.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'))?;
    match tag.split_once("pg") {
        Some((_, after)) if after.starts_with(|letter: char| letter.is_ascii_digit()) => {
            leading_number(after)
        }
        Some(_) | None => leading_number(tag),
    }
}

fn candidates() -> Vec<PathBuf> {
    let mut candidates = Vec::new();
    for (parent, below) in [("/usr/lib/postgresql", "bin"), ("/usr/libexec/postgresql", "")] {
        let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
        candidates.extend(entries.map(|entry| entry.path().join(below)));
    }
    let entries = std::fs::read_dir("/usr").into_iter().flatten().flatten();
    candidates.extend(
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("pgsql-"))
            .map(|entry| entry.path().join("bin")),
    );
    if let Some(path) = std::env::var_os("PATH") {
        candidates.extend(std::env::split_paths(&path));
    }
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        candidates.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    candidates
}

/// Asks `postgres --version`: `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)`.
fn version_of(postgres: &Path) -> Option<u32> {
    let output = Command::new(postgres).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    leading_number(text.split_once("(PostgreSQL) ")?.1)
}

fn leading_number(text: &str) -> Option<u32> {
    let digits = text
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(text.len());
    text[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed(majors: &[u32]) -> Installations {
        let programs = |major: &u32| PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
        Installations(
            majors
                .iter()
                .map(|major| {
                    (
                        *major,
                        Installation {
                            programs: programs(major),
                        },
                    )
                })
                .collect(),
        )
    }

    #[test]
    fn a_tag_names_a_major_version_in_many_ways() {
        for (image, version) in [
            ("postgres:15", Some(15)),
            ("postgres:15.4-bookworm", Some(15)),
            ("postgis/postgis:15-3.4", Some(15)),
            ("timescale/timescaledb:2.14.2-pg15", Some(15)),
            ("pgvector/pgvector:pg17", Some(17)),
            ("registry:5000/postgres:16@sha256:00", Some(16)),
            ("postgres", None),
            ("postgres:latest", None),
            ("registry:5000/postgres", None),
        ] {
            assert_eq!(image_version(image), version, "{image}");
        }
    }

    #[test]
    fn the_version_of_the_data_counts_more_than_the_image() {
        let installations = installed(&[15, 17]);
        let programs = |image, data| installations.choose(image, data).unwrap().programs.clone();
        assert!(programs("postgres:15", None).ends_with("15/bin"));
        assert!(programs("postgres:15", Some(17)).ends_with("17/bin"));
        assert!(programs("postgres:latest", None).ends_with("17/bin"));
    }

    #[test]
    fn a_version_that_is_not_there_is_named_with_those_that_are() {
        let error = installed(&[14, 15]).choose("postgres:16", None).unwrap_err();
        let RuntimeError::Unsupported { message, hint } = error else {
            panic!("{error:?}")
        };
        assert_eq!(
            message,
            "PostgreSQL 16, for image `postgres:16`, is not on this machine"
        );
        assert!(
            hint.contains("postgresql-16") && hint.ends_with("here: 14, 15"),
            "{hint}"
        );
    }
}
