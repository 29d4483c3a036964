use super::*;

#[test]
fn a_project_is_found_by_its_file_from_below() {
    let directory = tempfile::tempdir().unwrap();
    let below = directory.path().join("a/b");
    fs::create_dir_all(&below).unwrap();
    fs::write(
        directory.path().join(".zdap"),
        r#"{"compose": "./x.yml", "override": "o/x.yml"}"#,
    )
    .unwrap();
    let project = Project::find(&below, |_| None).unwrap();
    assert_eq!(project.compose, directory.path().join("x.yml"));
    assert_eq!(project.r#override, directory.path().join("o/x.yml"));
}

#[test]
fn the_paths_of_a_project_are_told_without_detours() {
    let directory = tempfile::tempdir().unwrap();
    let compose = directory.path().join("compose.yml");
    fs::write(&compose, "services: {}").unwrap();
    let file = ProjectFile::choose(directory.path(), None, None, |_| None).unwrap();
    Project::create(directory.path(), &file).unwrap();
    let project = Project::find(directory.path(), |_| None).unwrap();
    assert_eq!(
        project.compose.display().to_string(),
        compose.display().to_string()
    );
    assert_eq!(
        project.r#override.display().to_string(),
        directory
            .path()
            .join("compose.override.yml")
            .display()
            .to_string()
    );
}

#[test]
fn a_project_without_a_file_is_found_by_its_compose_file() {
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(
        Project::find(directory.path(), |_| None),
        Err(ProjectError::None(_))
    ));
    fs::write(directory.path().join("compose.yml"), "services: {}").unwrap();
    let project = Project::find(directory.path(), |_| None).unwrap();
    assert_eq!(project.r#override, directory.path().join("compose.override.yml"));
}

#[test]
fn a_project_file_that_is_not_json_is_named_with_its_line() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(".zdap"), "{\n\"compose\": 5}").unwrap();
    let path = directory.path().join(".zdap");
    let error = Project::find(directory.path(), |_| None).unwrap_err();
    assert_eq!(
        zdap_proto::refusal::chain(&error),
        format!(
            "{}: line 2, column 12: invalid type: integer `5`, expected path string",
            path.display()
        )
    );
}

#[test]
fn init_keeps_an_override_that_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let compose = directory.path().join("docker-compose.yml");
    fs::write(&compose, "services: {}").unwrap();
    let file = ProjectFile::choose(directory.path(), None, None, |_| None).unwrap();
    let project = Project::create(directory.path(), &file).unwrap();
    assert_eq!(fs::read_to_string(&project.r#override).unwrap(), "");
    assert_eq!(
        fs::read_to_string(directory.path().join(".zdap")).unwrap(),
        "{\"compose\":\"./docker-compose.yml\",\"override\":\"./docker-compose.override.yml\"}\n"
    );
    fs::write(&project.r#override, "# mine").unwrap();
    Project::create(directory.path(), &file).unwrap();
    assert_eq!(fs::read_to_string(&project.r#override).unwrap(), "# mine");
}
#[test]
fn the_nearest_project_counts_and_its_own_file_before_the_compose_file() {
    let directory = tempfile::tempdir().unwrap();
    let below = directory.path().join("a/b");
    fs::create_dir_all(&below).unwrap();
    let file = r#"{"compose": "x.yml", "override": "y.yml"}"#;
    fs::write(directory.path().join(".zdap"), file).unwrap();
    fs::write(directory.path().join("a/compose.yaml"), "").unwrap();
    let compose = || Project::find(&below, |_| None).unwrap().compose;
    assert_eq!(compose(), directory.path().join("a/compose.yaml"));
    fs::write(directory.path().join("a/.zdap"), file).unwrap();
    assert_eq!(compose(), directory.path().join("a/x.yml"));
}

#[test]
fn a_directory_of_that_name_is_not_a_project_file() {
    let directory = tempfile::tempdir().unwrap();
    let below = directory.path().join("shop");
    fs::create_dir_all(&below).unwrap();
    fs::create_dir(directory.path().join(".zdap")).unwrap();
    fs::write(below.join("compose.yml"), "").unwrap();
    let project = Project::find(&below, |_| None).unwrap();
    assert_eq!(project.compose, below.join("compose.yml"));
}

#[test]
fn the_override_is_the_one_that_compose_takes() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("docker-compose.yml"), "").unwrap();
    let r#override = || Project::find(directory.path(), |_| None).unwrap().r#override;
    assert_eq!(r#override(), directory.path().join("docker-compose.override.yml"));
    for name in OVERRIDES.into_iter().rev() {
        fs::write(directory.path().join(name), "").unwrap();
        assert_eq!(r#override(), directory.path().join(name));
    }
}

#[test]
fn files_that_are_named_elsewhere_are_not_guessed() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("compose.yml"), "").unwrap();
    let set = |name: &str| (name == "COMPOSE_FILE").then(|| "a.yml:b.yml".to_owned());
    let error = Project::find(directory.path(), set).unwrap_err();
    assert_eq!(
        error.to_string(),
        "COMPOSE_FILE in the environment names the project's files: `a.yml:b.yml`"
    );
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("zdap init --compose FILE --override FILE"))
    );
    fs::write(
        directory.path().join(".env"),
        "export COMPOSE_FILE=a.yml # mine\n",
    )
    .unwrap();
    let error = Project::find(directory.path(), |_| None).unwrap_err().to_string();
    assert!(
        error.contains("/.env names the project's files: `a.yml`"),
        "{error}"
    );
    let (compose, r#override) = (PathBuf::from("compose.yml"), PathBuf::from("b.yml"));
    let file = ProjectFile::choose(directory.path(), Some(compose), Some(r#override), set).unwrap();
    Project::create(directory.path(), &file).unwrap();
    let project = Project::find(directory.path(), set).unwrap();
    assert_eq!(project.r#override, directory.path().join("b.yml"));
}

#[test]
fn files_that_compose_does_not_find_are_named_in_the_command_that_starts_them() {
    let project = |compose: &str, r#override: &str| Project {
        compose: PathBuf::from(compose),
        r#override: PathBuf::from(r#override),
    };
    for (compose, r#override, command) in [
        ("a/compose.yml", "a/compose.override.yml", "docker compose up -d"),
        (
            "a/compose.yml",
            "compose.override.yml",
            "docker compose -f a/compose.yml -f compose.override.yml up -d",
        ),
        ("a/x.yml", "a/y.yml", "docker compose -f a/x.yml -f a/y.yml up -d"),
    ] {
        assert_eq!(project(compose, r#override).command_to_start(), command);
    }
}
