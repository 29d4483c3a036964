//! The invite: where the cluster is, how to know it, and a secret that is good once.
//!
//! One line of text, `zdap1-` and base64url of: a flag byte, the fingerprint of the CA's certificate, the secret, the
//! addresses with commas between them, and the first four bytes of the SHA-256 of all that. The sum tells a token that
//! was cut off or mistyped from one that is wrong.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use rand::RngExt;

use crate::identity::sha256;

/// An invite into a cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Where nodes of the cluster listen, `host:port`; at least one.
    pub addresses: Vec<String>,
    /// The SHA-256 of the CA's certificate: what the newcomer knows the cluster by.
    pub ca_fingerprint: [u8; 32],
    /// What the newcomer is known by; good once.
    pub secret: [u8; 32],
    /// Whether it lets in a node rather than a user.
    pub for_node: bool,
}

impl Token {
    /// Makes an invite with a new secret.
    pub fn new(addresses: Vec<String>, ca_fingerprint: [u8; 32], for_node: bool) -> Self {
        Self {
            addresses,
            ca_fingerprint,
            secret: rand::rng().random(),
            for_node,
        }
    }

    /// Returns what a node keeps of the secret.
    pub fn secret_hash(&self) -> [u8; 32] {
        secret_hash(&self.secret)
    }
}

/// Returns what a node keeps of a secret, and compares with when one arrives: its SHA-256, enough for 256 random bits.
pub fn secret_hash(secret: &[u8]) -> [u8; 32] {
    sha256(secret)
}

/// Why a text is not a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not begin like one.
    #[error("this is not a token: one begins with `zdap1-`")]
    NotAToken,
    /// It begins like one of another version.
    #[error("this token is for another version of zdap")]
    OtherVersion,
    /// Letters are missing or changed.
    #[error("the token is cut off or mistyped")]
    Damaged,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = vec![u8::from(self.for_node)];
        bytes.extend_from_slice(&self.ca_fingerprint);
        bytes.extend_from_slice(&self.secret);
        bytes.extend_from_slice(self.addresses.join(",").as_bytes());
        bytes.extend_from_slice(&sha256(&bytes)[..SUM]);
        write!(f, "{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    /// Blanks and line breaks, which terminals add when a line is copied, do not matter.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text: String = text.split_ascii_whitespace().collect();
        let Some(body) = text.strip_prefix(PREFIX) else {
            let version = text.strip_prefix("zdap").and_then(|rest| rest.split_once('-'));
            return Err(match version {
                Some((number, _))
                    if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) =>
                {
                    TokenError::OtherVersion
                }
                Some(_) | None => TokenError::NotAToken,
            });
        };
        let bytes = BASE64URL_NOPAD
            .decode(body.as_bytes())
            .map_err(|_| TokenError::Damaged)?;
        let (content, sum) = bytes.split_last_chunk::<SUM>().ok_or(TokenError::Damaged)?;
        if sha256(content)[..SUM] != sum[..] {
            return Err(TokenError::Damaged);
        }
        let (flag, rest) = content.split_first().ok_or(TokenError::Damaged)?;
        let (ca_fingerprint, rest) = rest.split_first_chunk().ok_or(TokenError::Damaged)?;
        let (secret, rest) = rest.split_first_chunk().ok_or(TokenError::Damaged)?;
        let addresses = std::str::from_utf8(rest).map_err(|_| TokenError::Damaged)?;
        Ok(Self {
            addresses: addresses.split(',').map(str::to_owned).collect(),
            ca_fingerprint: *ca_fingerprint,
            secret: *secret,
            for_node: match flag {
                0 => false,
                1 => true,
                _ => return Err(TokenError::Damaged),
            },
        })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("addresses", &self.addresses)
            .field("for_node", &self.for_node)
            .finish_non_exhaustive()
    }
}

const PREFIX: &str = "zdap1-";
/// One damaged token in four thousand million passes for a whole one, and is refused by the node.
const SUM: usize = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> Token {
        Token::new(
            vec!["10.0.0.1:43210".to_owned(), "[::1]:43210".to_owned()],
            [7; 32],
            false,
        )
    }

    #[test]
    fn a_token_reads_back_also_when_a_terminal_broke_the_line() {
        let text = token().to_string();
        let token: Token = text.parse().unwrap();
        let (first, second) = text.split_at(60);
        assert_eq!(format!(" {first}\n  {second}\n").parse(), Ok(token));
    }

    #[test]
    fn a_token_cut_off_or_mistyped_anywhere_is_damaged() {
        let text = token().to_string();
        for end in PREFIX.len()..text.len() {
            assert_eq!(text[..end].parse::<Token>(), Err(TokenError::Damaged), "{end}");
        }
        for place in PREFIX.len()..text.len() {
            let mut wrong = text.clone().into_bytes();
            wrong[place] = if wrong[place] == b'A' { b'B' } else { b'A' };
            let wrong = String::from_utf8(wrong).unwrap();
            assert_eq!(wrong.parse::<Token>(), Err(TokenError::Damaged), "{place}");
        }
    }

    #[test]
    fn something_else_is_not_a_token() {
        assert_eq!("10.0.0.1:43210".parse::<Token>(), Err(TokenError::NotAToken));
        assert_eq!("".parse::<Token>(), Err(TokenError::NotAToken));
        assert_eq!("zdap-x".parse::<Token>(), Err(TokenError::NotAToken));
        assert_eq!("zdap2-x".parse::<Token>(), Err(TokenError::OtherVersion));
    }

    #[test]
    fn the_secret_is_not_in_what_is_logged() {
        let token = Token {
            secret: [0xAB; 32],
            ..token()
        };
        assert!(!format!("{token:?}").contains("171"));
    }

    proptest! {
        #[test]
        fn no_text_panics_the_parser(text in "(zdap1-)?[A-Za-z0-9_-]{0,200}") {
            let _ = text.parse::<Token>();
        }
    }
}
