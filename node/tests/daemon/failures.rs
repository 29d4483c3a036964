//! Restores that cannot succeed: each says why, by name, and leaves nothing.

use crate::site::{Disk, Engine, Site, run};

#[test]
fn a_script_that_fails_hangs_says_nothing_or_cannot_run_is_named() {
    let test = "a_script_that_fails_hangs_says_nothing_or_cannot_run_is_named";
    let Some(mut site) = Site::new(test, Disk::Directory, Engine::Process) else {
        return;
    };
    let ok = "#!/bin/sh\n";
    let database = "docker:\n  image: postgres:15\n  env: [POSTGRES_PASSWORD=secret]\n";
    let creation = |script: &str| format!("creation: ./{script}\n{database}");
    site.add_resource(
        "fails",
        &creation("fails.sh"),
        &[("fails.sh", "#!/bin/sh\necho \"table $2 is broken\" >&2\nexit 3\n")],
    );
    site.add_resource(
        "hangs",
        &format!("{}timeouts:\n  creation: 1s\n", creation("hangs.sh")),
        &[("hangs.sh", "#!/bin/sh\necho before\nsleep 1000\n")],
    );
    site.add_resource(
        "silent",
        &format!("retrieval: ./silent.sh\n{}", creation("ok.sh")),
        &[("silent.sh", ok), ("ok.sh", ok)],
    );
    site.add_resource(
        "lost",
        &creation("lost.sh"),
        &[("lost.sh", "#!/no/such/interpreter\n")],
    );
    site.add_resource(
        "unmasked",
        &format!("masking: ./unmasked.sh\n{}", creation("ok.sh")),
        &[("unmasked.sh", "#!/bin/sh\necho 'names are still there'\nexit 1\n")],
    );
    site.start();
    let cases: [(&str, &[&str]); 5] = [
        ("fails", &["fails.sh", "exit status: 3", "is broken"]),
        ("hangs", &["hangs.sh", "1s", "before", "timeouts.creation"]),
        ("silent", &["silent.sh", "printed no file"]),
        ("lost", &["lost.sh", "No such file or directory", "interpreter"]),
        (
            "unmasked",
            &["unmasked.sh", "exit status: 1", "names are still there"],
        ),
    ];
    for (resource, words) in cases {
        let said = site.ask(&["create", "snap", resource]).unwrap_err();
        for word in words {
            assert!(said.contains(word), "{resource}: `{word}` is not in:\n{said}");
        }
        site.nothing_is_orphaned();
        assert!(site.list("snaps").is_empty());
    }
    let said = site.ask(&["create", "clone", "fails"]).unwrap_err();
    assert!(said.contains("`fails` has no snapshot yet"), "{said}");
}

#[test]
fn a_container_that_ends_while_it_starts_has_its_last_words_in_the_error() {
    let test = "a_container_that_ends_while_it_starts_has_its_last_words_in_the_error";
    let Some(mut site) = Site::new(test, Disk::Directory, Engine::Docker) else {
        return;
    };
    site.add_resource(
        "ends",
        "creation: ./ok.sh\n\
         docker:\n  image: postgres:15\n  env: [POSTGRES_PASSWORD=secret]\n  cmd: [postgres, -c, nonsense.=1, -c, nonsense=1]\n",
        &[("ok.sh", "#!/bin/sh\n")],
    );
    site.start();
    let said = site.ask(&["create", "snap", "ends"]).unwrap_err();
    assert!(said.contains("nonsense"), "{said}");
    site.nothing_is_orphaned();
    assert!(site.list("snaps").is_empty());
}

#[test]
fn a_pool_that_fills_up_during_a_restore_says_so_and_is_as_empty_as_before() {
    let test = "a_pool_that_fills_up_during_a_restore_says_so_and_is_as_empty_as_before";
    let Some(mut site) = Site::new(test, Disk::Zfs, Engine::Process) else {
        return;
    };
    let dataset = site.dataset.clone().unwrap();
    run("zfs", &["set", "quota=150M", &dataset]);
    site.add_resource(
        "large",
        "creation: ./large.sh\ndocker:\n  image: postgres:15\n  env: [POSTGRES_PASSWORD=secret]\n",
        &[(
            "large.sh",
            "#!/bin/sh\nexec psql -X -v ON_ERROR_STOP=1 -c \"create table large as \
             select n, repeat(md5(n::text), 30) from generate_series(1, 1000000) n\"\n",
        )],
    );
    site.start();
    let said = site.ask(&["create", "snap", "large"]).unwrap_err();
    let full = [
        "the disk is full",
        "No space left on device",
        "Disk quota exceeded",
    ];
    assert!(full.iter().any(|words| said.contains(words)), "{said}");
    site.nothing_is_orphaned();
    assert!(site.list("snaps").is_empty());
    run("zfs", &["set", "quota=none", &dataset]);
    site.restore("orders");
}
