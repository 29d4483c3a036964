//! `--timeout`, against small nodes over real QUIC: how a command ends that takes longer, and which does not end.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks at the requests that it is about"
)]

mod fake;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use zdap_proto::identity::ClusterCa;
use zdap_proto::message::{Account, Answer, Reply, Request};
use zdap_proto::refusal::{Refusal, RefusalKind};

use crate::fake::{Process, Said, ca, clone_view, command, enrol, no_nodes, silent, zdap};

/// Enough to reach a node on a machine that is busy with other tests.
const TIMEOUT: Duration = Duration::from_secs(3);

async fn run(home: &Path, arguments: &[&str]) -> Said {
    zdap(home, arguments).await.into()
}

/// Has a clone, knows its account or does not, and says nothing at all to who asks for the resources.
fn node(ca: &ClusterCa, account: Option<Account>) -> Process {
    let says = move |request| {
        Some(Reply::Done(match request {
            Request::ListResources => return None,
            Request::ListClones { .. } => Answer::Clones {
                clones: vec![clone_view("db1")],
                silent: Vec::new(),
            },
            Request::Account { .. } => match &account {
                Some(account) => Answer::Account(account.clone()),
                None => return Some(Reply::Refused(Refusal::new(RefusalKind::Failed, "who knows"))),
            },
            _ => return Some(no_nodes()),
        }))
    };
    Process::start(ca, "db1", Arc::new(says))
}

fn account() -> Account {
    Account {
        user: "ada".to_owned(),
        password: Some("secret".to_owned()),
        database: "shop".to_owned(),
    }
}

#[tokio::test]
async fn a_timeout_before_any_origin_was_reached_says_so() {
    let (ca, home) = (ca(), tempfile::tempdir().unwrap());
    let (_socket, address) = silent();
    enrol(home.path(), &ca, &[&address]);
    for arguments in [
        &["list", "nodes"][..],
        &["list", "origins"],
        &["add", "origin", &address],
        &["connect", "orders", "--port=0"],
        &["psql", "orders"],
    ] {
        let said = run(home.path(), &[&["--timeout=1"], arguments].concat()).await;
        assert_eq!(said.code, Some(3), "{arguments:?}: {said:?}");
        assert!(
            said.stderr
                .starts_with("error: no origin was reached within 1 s; it was: "),
            "{said:?}"
        );
    }
    let said = run(home.path(), &["list", "nodes", "--timeout=1", "--json"]).await;
    assert_eq!(said.json()["error"]["kind"], "unreachable");
}

#[tokio::test]
async fn a_timeout_once_an_origin_was_reached_is_a_failure_like_others() {
    let (ca, home) = (ca(), tempfile::tempdir().unwrap());
    let node = node(&ca, None);
    enrol(home.path(), &ca, &[&node.address]);
    let said = run(home.path(), &["list", "resources", "--timeout=3"]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(
        said.stderr
            .starts_with("error: not done within 3 s; it was: asking for the resources"),
        "{said:?}"
    );

    // Of two clusters one is enough.
    let other = fake::ca();
    let (_socket, address) = silent();
    enrol(home.path(), &other, &[&address]);
    for what in ["nodes", "origins"] {
        let said = run(home.path(), &["list", what, "--timeout=3"]).await;
        assert_eq!(said.code, Some(1), "{said:?}");
    }
}

/// `zdap connect` with a timeout, once it serves at this address.
fn connected(home: &Path) -> (Child, String) {
    let timeout = format!("--timeout={}", TIMEOUT.as_secs());
    let mut child = command(home, home, &["connect", "orders", "--port=0", &timeout])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    let address = line
        .strip_prefix("postgres://")
        .map(|address| address.trim().to_owned());
    (child, address.unwrap_or_else(|| panic!("{line:?}")))
}

/// Ends it by Ctrl-C, which is how it ends, and returns what it has said.
fn talk_of(mut child: Child) -> String {
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    std::io::read_to_string(child.stderr.take().unwrap()).unwrap()
}

#[tokio::test]
async fn what_serves_is_not_ended_by_a_timeout() {
    let (ca, home) = (ca(), tempfile::tempdir().unwrap());
    let node = node(&ca, Some(account()));
    enrol(home.path(), &ca, &[&node.address]);
    let begun = Instant::now();
    let (mut child, address) = connected(home.path());
    while begun.elapsed() < TIMEOUT + Duration::from_secs(1) {
        assert_eq!(child.try_wait().unwrap(), None, "after {:?}", begun.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    TcpStream::connect(address).unwrap();
    let talk = talk_of(child);
    assert!(
        talk.contains(
            "user `ada`, database `shop`, and the password of the copied database; \
             `zdap psql orders-k3v9x2mq` fills them in"
        ),
        "{talk}"
    );
    assert!(!talk.contains("secret"), "{talk}");
}

#[tokio::test]
async fn where_the_account_is_not_known_it_is_said_whose_it_is() {
    let (ca, home) = (ca(), tempfile::tempdir().unwrap());
    let node = node(&ca, None);
    enrol(home.path(), &ca, &[&node.address]);
    let (child, _) = connected(home.path());
    let talk = talk_of(child);
    assert!(
        talk.contains("user, password and database are those of the copied database"),
        "{talk}"
    );
}

#[tokio::test]
async fn psql_stays_for_longer_than_the_timeout() {
    let (ca, home) = (ca(), tempfile::tempdir().unwrap());
    let node = node(&ca, Some(account()));
    enrol(home.path(), &ca, &[&node.address]);
    let psql = home.path().join("psql");
    let seconds = TIMEOUT.as_secs() + 1;
    fs::write(
        &psql,
        format!("#!/bin/sh\nsleep {seconds}\necho $PGUSER at $PGDATABASE\n"),
    )
    .unwrap();
    fs::set_permissions(&psql, fs::Permissions::from_mode(0o755)).unwrap();
    let timeout = format!("--timeout={}", TIMEOUT.as_secs());
    let mut command = command(home.path(), home.path(), &[&timeout, "psql", "orders"]);
    command.env("PATH", format!("{}:/usr/bin:/bin", home.path().display()));
    let said: Said = tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
        .into();
    assert_eq!(
        (said.code, said.stdout.as_str()),
        (Some(0), "ada at shop\n"),
        "{said:?}"
    );
}
