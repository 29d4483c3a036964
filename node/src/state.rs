//! The state directory: who this node is, and that no other process is it.
//!
//! ```text
//! <state-dir>/lock           held by the running node
//! <state-dir>/port           where it listens, for the commands of this machine
//! <state-dir>/ca.pem         the cluster's CA, with its key (0600)
//! <state-dir>/identity.pem   this node's key and certificate (0600)
//! <state-dir>/invites.json   outstanding invites, by hash (0600)
//! <state-dir>/strays         clones that `requests::placing` may have to take back
//! <state-dir>/...            what `cluster` remembers of the other nodes
//! ```

mod renewal;

use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use chrono::{DateTime, Utc};
use zdap_proto::connect::connect_for_enrol;
use zdap_proto::frame::{self, REPLY_CAP, REQUEST_CAP};
use zdap_proto::identity::{ClusterCa, Identity, Keypair, Subject};
use zdap_proto::message::{EnrolReply, EnrolRequest, Enrolled, Wanted};
use zdap_proto::name::NodeName;
use zdap_proto::token::Token;
use zdap_proto::transport;

use crate::cluster;

pub use self::renewal::stay_certified;
pub use zdap_proto::keyfile::replace;

/// The state directory of a running node; locked as long as the value lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes the directory if it is not there, for its owner alone, and locks it.
    pub fn lock(path: &Path) -> anyhow::Result<Self> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.with_context(|| format!("make the state directory `{}`", path.display()))?;
        let file = path.join("lock");
        let lock = File::create(&file).with_context(|| format!("open `{}`", file.display()))?;
        let deadline = Instant::now() + PROBED;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(AGAIN),
                Err(TryLockError::WouldBlock) => bail!(
                    "another zdapd runs on the state directory `{}`; give this one its own with --state-dir",
                    path.display()
                ),
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("lock `{}`", file.display()));
                }
            }
        }
        let state = Self {
            path: path.to_owned(),
            _lock: lock,
        };
        // A node that was killed has left its own.
        state.withdraw_port();
        Ok(state)
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns where the invites are kept.
    pub fn invites(&self) -> PathBuf {
        self.path.join("invites.json")
    }

    /// Writes down where this node listens, for [`port`]; taken back when the value is dropped.
    pub fn publish_port(&self, port: u16) -> io::Result<()> {
        replace(&self.path.join("port"), port.to_string().as_bytes())
    }

    /// Takes back a cluster that was founded just now and has no member yet.
    pub fn forget_founding(&self) {
        for file in ["identity.pem", "ca.pem"] {
            if let Err(error) = std::fs::remove_file(self.path.join(file)) {
                tracing::warn!(%error, file, "take back the founding of a cluster");
            }
        }
    }

    fn withdraw_port(&self) {
        // What is left is of no use to anybody: commands ask first whether the node runs.
        let _ = std::fs::remove_file(self.path.join("port"));
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        self.withdraw_port();
    }
}

/// Returns the port that the node on this state directory listens on, if one runs.
pub fn port(state_dir: &Path) -> anyhow::Result<u16> {
    let file = state_dir.join("lock");
    let is_running = match File::open(&file).map(|lock| lock.try_lock_shared()) {
        Ok(Err(TryLockError::WouldBlock)) => true,
        Ok(Err(TryLockError::Error(error))) => {
            return Err(error).with_context(|| format!("look at `{}`", file.display()));
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("look at `{}`", file.display()));
        }
        Ok(Ok(())) | Err(_) => false,
    };
    if !is_running {
        bail!(
            "no node runs on the state directory `{}`; `zdapd serve` starts one, --state-dir names another",
            state_dir.display()
        );
    }
    let text = std::fs::read_to_string(state_dir.join("port"))
        .context("the node is still starting; try again in a moment")?;
    text.trim()
        .parse()
        .with_context(|| format!("`{}/port` does not hold a port", state_dir.display()))
}

/// Reads a file of the state directory; one that is not there is empty.
pub(crate) fn read_if_any(path: &Path) -> io::Result<String> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    }
}

/// What makes a node one of its cluster.
#[derive(Debug)]
pub struct Membership {
    /// The cluster's CA.
    pub ca: ClusterCa,
    /// This node's certificate.
    pub identity: Identity,
    /// How it came about.
    pub origin: Origin,
}

/// How a node came to its identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It founded the cluster just now: whatever is in the state directory is new.
    Founded,
    /// It joined the cluster just now.
    Joined,
    /// It, or at least its cluster, had been there before.
    Known,
}

/// Loads this node's identity; on an empty state directory founds a cluster, or joins the one of `token`.
pub async fn membership(
    state: &StateDir,
    name: &NodeName,
    token: Option<&Token>,
    now: DateTime<Utc>,
) -> anyhow::Result<Membership> {
    let path = state.path();
    if Identity::exists(path) {
        return known(path, name, token, now);
    }
    let (ca, identity, origin) = match token {
        Some(token) => {
            let (ca, identity, nodes) = join(token, name).await?;
            let addresses = [token.addresses.clone(), nodes].concat();
            cluster::remember(path, &addresses).context("write down where the other nodes are")?;
            (ca, identity, Origin::Joined)
        }
        None => {
            // A crash after the CA was saved and before the identity was: the same cluster goes on.
            let (ca, origin) = match ClusterCa::exists(path) {
                true => (ClusterCa::load(path)?, Origin::Known),
                false => (ClusterCa::found(now)?, Origin::Founded),
            };
            let identity = ca.identity(&Subject::Node(name.clone()), CERTIFICATE_LIFE, now)?;
            (ca, identity, origin)
        }
    };
    ca.save(path)?;
    identity.save(path)?;
    Ok(Membership { ca, identity, origin })
}

fn known(
    path: &Path,
    name: &NodeName,
    token: Option<&Token>,
    now: DateTime<Utc>,
) -> anyhow::Result<Membership> {
    let ca = ClusterCa::load(path)?;
    let mut identity = Identity::load(path)?;
    if let Some(token) = token
        && token.ca_fingerprint != ca.fingerprint()
    {
        bail!(
            "this node belongs to the cluster `{}` already, and the token is for another; \
             join with an empty state directory: --state-dir",
            ca.cluster()
        );
    }
    if identity.subject() != &Subject::Node(name.clone()) {
        bail!(
            "the state directory `{}` is that of {}, not of node `{name}`; start with --node-name, or with another --state-dir",
            path.display(),
            identity.subject()
        );
    }
    // Renewed at two thirds of its life, as every certificate of the cluster.
    if now >= renewal::due(&identity, CERTIFICATE_LIFE) {
        identity = ca.renew(&identity, CERTIFICATE_LIFE, now)?;
        identity.save(path)?;
    }
    Ok(Membership {
        ca,
        identity,
        origin: Origin::Known,
    })
}

/// Trades a token for a node's certificate and the CA itself.
async fn join(token: &Token, name: &NodeName) -> anyhow::Result<(ClusterCa, Identity, Vec<String>)> {
    if !token.for_node {
        bail!("the token is for a user; `zdapd token node` on a node of the cluster makes one for a node");
    }
    let keypair = Keypair::generate()?;
    let request = EnrolRequest {
        secret: token.secret.to_vec(),
        public_key: keypair.public_key(),
        wanted: Wanted::Node { name: name.clone() },
    };
    let endpoint = transport::client_endpoint()?;
    let connection = connect_for_enrol(&endpoint, token).await?;
    let (mut send, mut receive) = connection.open_bi().await.context("enrol")?;
    frame::write(&mut send, &request, REQUEST_CAP)
        .await
        .context("enrol")?;
    let reply = frame::read(&mut receive, REPLY_CAP).await.context("enrol")?;
    transport::Close::Done.connection(&connection, "enrolled");
    endpoint.wait_idle().await;
    match reply {
        EnrolReply::Enrolled(Enrolled {
            certificate,
            ca_key: Some(key),
            nodes,
            ..
        }) => {
            let ca = ClusterCa::from_parts(certificate.ca.clone(), key)?;
            Ok((ca, Identity::new(keypair, &certificate)?, nodes))
        }
        EnrolReply::Enrolled(_) => bail!("the cluster did not hand over its CA"),
        EnrolReply::Refused(refusal) => match refusal.hint {
            Some(hint) => bail!("{}; {hint}", refusal.message),
            None => bail!("{}", refusal.message),
        },
    }
}

/// Certificates of nodes, users and relays: long enough for a laptop to be away for a season.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// How long a lock that somebody holds is asked for again: commands that ask whether a node runs hold it for an instant.
const PROBED: Duration = Duration::from_millis(300);
const AGAIN: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> NodeName {
        "a".parse().unwrap()
    }

    #[test]
    fn a_second_node_on_the_same_state_directory_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let first = StateDir::lock(directory.path()).unwrap();
        let error = StateDir::lock(directory.path()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("another zdapd runs on the state directory"),
            "{error}"
        );
        drop(first);
        StateDir::lock(directory.path()).expect("the first has gone");
    }

    #[test]
    fn the_port_is_told_while_the_node_runs() {
        let directory = tempfile::tempdir().unwrap();
        let told = || port(directory.path()).map_err(|error| error.to_string());
        assert!(told().unwrap_err().contains("no node runs"));
        let state = StateDir::lock(directory.path()).unwrap();
        assert!(told().unwrap_err().contains("still starting"));
        state.publish_port(4000).unwrap();
        assert_eq!(told(), Ok(4000));
        drop(state);
        assert!(told().unwrap_err().contains("no node runs"));
    }

    #[test]
    fn the_port_of_a_node_that_was_killed_is_not_told_while_the_next_one_starts() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("port"), "4000").unwrap();
        let _state = StateDir::lock(directory.path()).unwrap();
        let error = port(directory.path()).unwrap_err();
        assert!(error.to_string().contains("still starting"), "{error}");
    }

    #[test]
    fn a_command_that_asks_whether_a_node_runs_does_not_keep_it_from_starting() {
        let directory = tempfile::tempdir().unwrap();
        let asked = File::create(directory.path().join("lock")).unwrap();
        asked.lock_shared().unwrap();
        let release = std::thread::spawn(move || {
            std::thread::sleep(AGAIN * 3);
            drop(asked);
        });
        StateDir::lock(directory.path()).unwrap();
        release.join().unwrap();
    }

    #[tokio::test]
    async fn only_a_ca_that_was_made_just_now_counts_as_founded() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::lock(directory.path()).unwrap();
        let founded = membership(&state, &name(), None, Utc::now()).await.unwrap();
        std::fs::remove_file(directory.path().join("identity.pem")).unwrap();
        let again = membership(&state, &name(), None, Utc::now()).await.unwrap();
        assert_eq!(again.origin, Origin::Known);
        assert_eq!(again.ca.fingerprint(), founded.ca.fingerprint());
    }

    #[tokio::test]
    async fn an_empty_state_directory_founds_a_cluster_and_the_next_start_is_the_same_member() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::lock(directory.path()).unwrap();
        let now = Utc::now();
        let founded = membership(&state, &name(), None, now).await.unwrap();
        assert_eq!(founded.origin, Origin::Founded);
        let known = membership(&state, &name(), None, now).await.unwrap();
        assert_eq!(known.origin, Origin::Known);
        assert_eq!(known.identity.peer(), founded.identity.peer());
    }

    #[tokio::test]
    async fn a_node_renews_its_own_certificate_when_a_third_of_its_life_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::lock(directory.path()).unwrap();
        let now = Utc::now();
        let founded = membership(&state, &name(), None, now).await.unwrap();
        let later = membership(&state, &name(), None, now + chrono::TimeDelta::days(61))
            .await
            .unwrap();
        assert!(later.identity.expires_at() > founded.identity.expires_at());
    }

    #[tokio::test]
    async fn a_state_directory_does_not_serve_under_another_name_or_cluster() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::lock(directory.path()).unwrap();
        membership(&state, &name(), None, Utc::now()).await.unwrap();
        let error = membership(&state, &"b".parse().unwrap(), None, Utc::now())
            .await
            .unwrap_err();
        assert!(error.to_string().contains("not of node `b`"), "{error}");
        let other = Token::new(vec!["127.0.0.1:1".to_owned()], [7; 32], true);
        let error = membership(&state, &name(), Some(&other), Utc::now())
            .await
            .unwrap_err();
        assert!(error.to_string().contains("the token is for another"), "{error}");
    }
}
