use clap::CommandFactory;

use super::*;

#[test]
fn the_tree_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_has_an_about_line_and_an_example() {
    fn check(command: &clap::Command) {
        assert!(command.get_about().is_some(), "{}", command.get_name());
        if command.get_subcommands().next().is_none() {
            let help = command.get_after_help().map(ToString::to_string);
            assert!(
                help.is_some_and(|help| help.contains("Example")),
                "{}",
                command.get_name()
            );
        }
        command.get_subcommands().for_each(check);
    }
    check(&Cli::command());
}

#[test]
fn new_and_destroy_are_true_unless_said_otherwise() {
    let new = |arguments: &[&str]| {
        let Command::Attach(attach) = Cli::try_parse_from(arguments).unwrap().command else {
            panic!("{arguments:?}");
        };
        attach.new
    };
    assert!(new(&["zdap", "attach", "orders"]));
    assert!(new(&["zdap", "attach", "--new", "orders"]));
    assert!(!new(&["zdap", "attach", "--new=false", "orders"]));
    assert!(!new(&["zdap", "attach", "orders", "--new=false", "@db1"]));
}

#[test]
fn what_follows_two_dashes_is_for_psql() {
    let cli = Cli::try_parse_from(["zdap", "psql", "orders", "--", "-c", "select 1"]).unwrap();
    let Command::Psql(psql) = cli.command else {
        panic!("{cli:?}");
    };
    assert_eq!(psql.words, ["orders"]);
    assert_eq!(psql.arguments, ["-c", "select 1"]);
}

#[test]
fn a_timeout_is_a_positive_number_of_seconds() {
    assert!(seconds("0.5").is_ok());
    for wrong in ["0", "-1", "x", "NaN", "inf", "1e300"] {
        assert!(seconds(wrong).is_err(), "{wrong}");
    }
}
