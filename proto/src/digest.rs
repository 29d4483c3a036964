//! What every node tells every other of itself: small enough to ride along on packets of the gossip.

use serde::{Deserialize, Serialize};

use crate::name::NodeName;

/// No digest is longer, encoded. Several fit in one packet, beside what the membership has to say.
pub const MAX_DIGEST_BYTES: usize = 160;

/// Generations are milliseconds since 1970, or one more than the one before; this is the year 10889. What is higher is
/// damage, and believing it would leave a node no number to go above.
pub const MAX_GENERATION: u64 = 1 << 48;

/// One node, as it was when it said so. Of two digests of a node the one with the higher [`NodeDigest::version`] is newer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDigest {
    /// Whose.
    pub node: NodeName,
    /// Grows with each start of the node, never goes back.
    pub generation: u64,
    /// Grows with each digest of a generation.
    pub sequence: u32,
    /// What it says.
    pub report: NodeReport,
}

/// The figures a place for a clone is chosen by.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Free in the pool, in MiB.
    pub pool_free_mib: u32,
    /// Size of the pool, in MiB.
    pub pool_total_mib: u32,
    /// Memory available to new programs, in MiB.
    pub memory_free_mib: u32,
    /// Memory of the machine, in MiB.
    pub memory_total_mib: u32,
    /// Load of the last minute, in hundredths of a core for each core: 100 is all of them busy.
    pub load_percent: u16,
    /// Clones it holds.
    pub clones: u16,
    /// Places promised and not yet taken.
    pub reservations: u16,
    /// What it will not do, whatever the figures say.
    pub flags: NodeFlags,
    /// Grows when its resources or snapshots change.
    pub catalog_version: u64,
    /// Digest of the catalog of that version.
    pub catalog_hash: [u8; 8],
    /// The highest protocol version it speaks.
    pub protocol: u16,
    /// Its software: major, minor, patch.
    pub software: [u16; 3],
}

/// Reasons to place nothing on a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFlags {
    /// It is being emptied.
    pub draining: bool,
    /// It has no room, by its own rules.
    pub full: bool,
    /// Its pool takes no writes.
    pub read_only: bool,
    /// It could not take its figures for a while, and nobody knows how it is.
    pub stale: bool,
}

/// Bytes that are no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// Longer than any digest.
    #[error("a digest of {0} bytes, more than {MAX_DIGEST_BYTES}")]
    TooLong(usize),
    /// Not the bytes of a digest.
    #[error("not a digest")]
    Malformed(#[source] postcard::Error),
    /// More bytes than the digest has.
    #[error("{0} bytes after the end of a digest")]
    Trailing(usize),
    /// A generation that no node comes to.
    #[error("the digest of `{node}` has the generation {generation}, above {MAX_GENERATION}")]
    Generation {
        /// Whose.
        node: NodeName,
        /// What it said.
        generation: u64,
    },
}

/// The variant's number is the version: new variants are only appended.
#[derive(Serialize, Deserialize)]
enum Versioned {
    V1(NodeDigest),
}

impl NodeDigest {
    /// Returns what orders the digests of one node.
    pub fn version(&self) -> (u64, u32) {
        (self.generation, self.sequence)
    }

    /// Returns the bytes, at most [`MAX_DIGEST_BYTES`].
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(&Versioned::V1(self.clone())).expect("plain data into a vector")
    }

    /// Reads a digest back.
    pub fn decode(bytes: &[u8]) -> Result<Self, DigestError> {
        if bytes.len() > MAX_DIGEST_BYTES {
            return Err(DigestError::TooLong(bytes.len()));
        }
        let (Versioned::V1(digest), rest) =
            postcard::take_from_bytes(bytes).map_err(DigestError::Malformed)?;
        if !rest.is_empty() {
            return Err(DigestError::Trailing(rest.len()));
        }
        if digest.generation > MAX_GENERATION {
            return Err(DigestError::Generation {
                node: digest.node,
                generation: digest.generation,
            });
        }
        Ok(digest)
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;

    use super::*;

    fn usual() -> NodeDigest {
        NodeDigest {
            node: "db1".parse().unwrap(),
            generation: 1_795_353_600_000,
            sequence: 7,
            report: NodeReport {
                pool_free_mib: 1_500_000,
                pool_total_mib: 2_000_000,
                memory_free_mib: 48_000,
                memory_total_mib: 64_000,
                load_percent: 35,
                clones: 12,
                reservations: 1,
                flags: NodeFlags {
                    draining: true,
                    ..NodeFlags::default()
                },
                catalog_version: 300,
                catalog_hash: *b"\x01\x02\x03\x04\x05\x06\x07\x08",
                protocol: 1,
                software: [0, 1, 0],
            },
        }
    }

    #[test]
    fn a_digest_has_the_bytes_it_always_had() {
        assert_eq!(
            HEXLOWER.encode(&usual().encode()),
            "000364623180c0a79ba03407e0c65b80897a80f70280f403230c0101000000ac02010203040506070801000100"
        );
    }

    #[test]
    fn the_largest_digest_fits() {
        let largest = NodeDigest {
            node: "n".repeat(63).parse().unwrap(),
            generation: MAX_GENERATION,
            sequence: u32::MAX,
            report: NodeReport {
                pool_free_mib: u32::MAX,
                pool_total_mib: u32::MAX,
                memory_free_mib: u32::MAX,
                memory_total_mib: u32::MAX,
                load_percent: u16::MAX,
                clones: u16::MAX,
                reservations: u16::MAX,
                flags: NodeFlags::default(),
                catalog_version: u64::MAX,
                catalog_hash: [0xff; 8],
                protocol: u16::MAX,
                software: [u16::MAX; 3],
            },
        };
        let bytes = largest.encode();
        assert!(bytes.len() <= MAX_DIGEST_BYTES, "{} bytes", bytes.len());
        assert_eq!(NodeDigest::decode(&bytes), Ok(largest));
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        let bytes = usual().encode();
        assert_eq!(NodeDigest::decode(&bytes), Ok(usual()));
        assert!(matches!(
            NodeDigest::decode(&bytes[..bytes.len() - 1]),
            Err(DigestError::Malformed(_))
        ));
        assert_eq!(
            NodeDigest::decode(&[bytes, vec![0]].concat()),
            Err(DigestError::Trailing(1))
        );
        assert_eq!(NodeDigest::decode(&[0; 161]), Err(DigestError::TooLong(161)));
        let beyond = NodeDigest {
            generation: MAX_GENERATION + 1,
            ..usual()
        };
        assert!(matches!(
            NodeDigest::decode(&beyond.encode()),
            Err(DigestError::Generation { .. })
        ));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = NodeDigest::decode(&bytes);
        }
    }
}
