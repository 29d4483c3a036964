//! Keys and certificates on disk: one PEM file, readable by its owner only, replaced whole; and [`replace`] for other
//! small files that must survive a crash.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use rand::RngExt;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

/// Why a key file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read or written.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was tried: `read`, `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Others than its owner may read it.
    #[error("`{}` holds a private key and others may read it (mode {mode:04o})", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It does not hold a key and the certificates that belong to it.
    #[error("`{}` does not hold {missing}", path.display())]
    Incomplete {
        /// The file.
        path: PathBuf,
        /// What is missing.
        missing: &'static str,
    },
}

/// What a key file holds.
pub(crate) struct KeyFile {
    /// PKCS #8.
    pub(crate) key: Vec<u8>,
    /// At least one; the owner's first, then what it hangs from.
    pub(crate) certificates: Vec<CertificateDer<'static>>,
}

/// Replaces a file whole, for its owner only: a crash leaves the old one or the new one, and after the return it is the
/// new one, also when the power fails. Makes the directory, for its owner only, when it is not there.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension(format!("{:08x}.new", rand::rng().random::<u32>()));
    let written = write_and_rename(path, &fresh, content);
    if written.is_err() {
        let _ = fs::remove_file(&fresh); // what matters is the first error
    }
    written
}

/// Writes a key and its certificates as [`replace`] does.
pub(crate) fn write(path: &Path, key: &[u8], certificates: &[&[u8]]) -> Result<(), KeyFileError> {
    let mut text = pem("PRIVATE KEY", key);
    for certificate in certificates {
        text.push_str(&pem("CERTIFICATE", certificate));
    }
    replace(path, text.as_bytes()).map_err(|source| KeyFileError::Io {
        action: "write",
        path: path.to_owned(),
        source,
    })
}

fn write_and_rename(path: &Path, fresh: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(fresh)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(fresh, path)?;
    File::open(directory)?.sync_all()
}

/// Reads what [`write`] wrote, unless others may read it too.
pub(crate) fn read(path: &Path) -> Result<KeyFile, KeyFileError> {
    let failed = |source| KeyFileError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    };
    let incomplete = |missing| KeyFileError::Incomplete {
        path: path.to_owned(),
        missing,
    };
    let mode = fs::metadata(path).map_err(failed)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let text = fs::read(path).map_err(failed)?;
    let key = PrivatePkcs8KeyDer::from_pem_slice(&text)
        .map_err(|_| incomplete("a private key in PEM"))?
        .secret_pkcs8_der()
        .to_vec();
    let certificates = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| incomplete("certificates in PEM"))?;
    match certificates.is_empty() {
        true => Err(incomplete("a certificate")),
        false => Ok(KeyFile { key, certificates }),
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let body = BASE64.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(PEM_LINE));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// As RFC 7468 has it.
const PEM_LINE: usize = 64;
