//! The relay program that clients without its image are given: `zdap-proxyd`, beside `zdapd`.

use std::path::{Path, PathBuf};

use tokio::fs::File;
use tokio::io::AsyncReadExt;
use zdap_proto::refusal::{Refusal, RefusalKind};

/// Opens the relay program for machines of `architecture` (as `uname -m` calls it) and returns it with its size in bytes.
///
/// It runs in an empty image, so one that needs a dynamic loader is not handed out.
pub async fn open(path: &Path, architecture: &str) -> Result<(File, u64), Refusal> {
    if architecture != std::env::consts::ARCH {
        let here = std::env::consts::ARCH;
        return Err(missing(format!(
            "this node has the relay for {here} only, not for `{architecture}`"
        )));
    }
    let unreadable = |error| missing(format!("read the relay program `{}`: {error}", path.display()));
    let mut file = File::open(path).await.map_err(unreadable)?;
    let size = file.metadata().await.map_err(unreadable)?.len();
    let mut head = vec![0; HEAD];
    let read = file.read(&mut head).await.map_err(unreadable)?;
    if !is_static_elf(&head[..read]) {
        return Err(missing(format!(
            "`{}` is not a static program, so it does not run in an empty image",
            path.display()
        )));
    }
    Ok((File::open(path).await.map_err(unreadable)?, size))
}

/// Returns where the relay program is expected: beside this one.
pub fn path() -> PathBuf {
    std::env::current_exe()
        .unwrap_or_default()
        .with_file_name("zdap-proxyd")
}

/// Reads the program headers of a 64-bit little-endian ELF file (System V ABI, chapter 5): a dynamic program names its
/// loader in one of type `PT_INTERP`.
fn is_static_elf(head: &[u8]) -> bool {
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return false;
    }
    let number = |offset: usize, size: usize| {
        let bytes = head.get(offset..offset + size)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0usize, |number, byte| number << 8 | usize::from(*byte)),
        )
    };
    let (Some(offset), Some(size), Some(count)) = (number(32, 8), number(54, 2), number(56, 2)) else {
        return false;
    };
    (0..count).all(|index| {
        let header = size
            .checked_mul(index)
            .and_then(|start| start.checked_add(offset));
        header
            .filter(|header| *header < HEAD)
            .and_then(|header| number(header, 4))
            .is_some_and(|kind| kind != PT_INTERP)
    })
}

fn missing(message: String) -> Refusal {
    Refusal::new(RefusalKind::NotFound, message)
        .with_hint("install a static `zdap-proxyd` of that architecture beside `zdapd` (README, operating), or build the image with deploy/Dockerfile.relay")
}

/// Linkers put the program headers right behind the 64 bytes of the ELF header.
const HEAD: usize = 4096;
const PT_INTERP: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_an_elf_file_is_not_a_static_program() {
        assert!(!is_static_elf(b""));
        assert!(!is_static_elf(b"#!/bin/sh"));
        assert!(!is_static_elf(b"\x7fELF\x02\x01"));
    }

    #[test]
    fn a_program_with_a_loader_is_told_from_one_without() {
        let elf = |kind: u8| {
            let mut bytes = vec![0; 120];
            bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
            (bytes[32], bytes[54], bytes[56], bytes[64]) = (64, 56, 1, kind);
            bytes
        };
        assert!(is_static_elf(&elf(1)));
        assert!(!is_static_elf(&elf(3)));
    }

    proptest::proptest! {
        #[test]
        fn no_header_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            is_static_elf(&[b"\x7fELF\x02\x01".as_slice(), &bytes].concat());
        }
    }
}
