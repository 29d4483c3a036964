//! What attach and detach do to overrides of every shape.

mod properties;

use serde_yaml::{Mapping, Value};

use super::{Attached, ComposeError, RelayService, attach, attached, detach};

fn relay(service: &str) -> RelayService {
    RelayService {
        service: service.to_owned(),
        image: "zdap/zdap-proxyd:0.1.0".to_owned(),
        listen_port: 5432,
        published_port: None,
        resource: service.to_owned(),
        clone: format!("{service}-7f3a"),
        node: "node-a".to_owned(),
        owner: "ada".to_owned(),
        servers: vec!["10.0.0.1:43210".to_owned(), "10.0.0.2:43210".to_owned()],
        identity_dir: format!(".zdap.d/{service}"),
        user: None,
        extra_hosts: Vec::new(),
        start_interval: false,
    }
}

/// Overrides that have nothing of `orders` and `users` in them.
const SHAPES: &[&str] = &[
    "",
    "\n",
    "\n\n  \n",
    "# only a comment",
    "# only\n\n# comments\n",
    "---\n",
    "---",
    "--- # with a comment\n# and another\n",
    "%YAML 1.2\n---\n",
    "---\n# nothing\n...\n",
    "\u{feff}",
    "\u{feff}# marked\nservices:\n  web:\n    image: a\n",
    "services:",
    "services:\n",
    "services: # none yet\n",
    "services:   \n\n# later\n",
    "services: ~\n",
    "services: null # none\n",
    "services: null",
    "services: {}",
    "services: {}\n",
    "services: {} # empty\nx-a: 1\n",
    "services: { }\r\nx-a: 1\r\n",
    "services: {web: {image: a}}\n",
    "services: { web: {image: a}, db: {image: b} }",
    "services: {\n  web: {image: a},\n  db: {image: b}\n}\n",
    "services: { # these\n  web: {image: a} }\n",
    "services:\n  {web: {image: a}}\n",
    "services: &all {web: {image: a}}\n",
    "services: &all # {not: this}\n  web:\n    image: a\n",
    "services:\n  &all\n  web:\n    image: a\n",
    "services: !override\n  web:\n    image: a\n",
    "{}",
    "{}\n",
    "--- {}\n",
    "{ }\r\n",
    "{x-a: 1}\n",
    "{\"services\": {\"web\": {\"image\": \"a\"}}}\n",
    "{\n  \"services\": {\n    \"web\": {\n      \"image\": \"a\"\n    }\n  }\n}\n",
    "{\r\n  \"x-a\": 1\r\n}\r\n",
    "x-a: 1",
    "x-a: 1\n# the end",
    "# licence\n\n# about a\nx-a: &a {image: a}\nx-b:\n  - 1\n",
    "version: \"3.8\"\n\nservices:\n  web:\n    image: a\n",
    "services:\n  web:\n    image: a",
    "services:\n  # about web\n  web:\n    image: a # inline\n\n  # trailing\n\n\nvolumes:\n  data: {}\n",
    "services:\n\n\n  # apart\n\n  web: {image: a}\n",
    "services:\r\n  web:\r\n    image: a\r\n\r\n  # c\r\nx-a: 1\r\n",
    "services:\r\n  web:\r\n    image: a",
    "services:\n    web:\n        image: a\n    db:\n        image: b\n",
    "services:\n   web:\n      image: a\n",
    "services:\n web:\n  image: a\n",
    "  services:\n    web:\n      image: a\n",
    "services:\n  web:\n    build: !reset null\n    ports: !override\n      - 80:80\n    command: !reset []\n",
    "x-c: &c\n  restart: always\nservices:\n  web: &w\n    <<: *c\n    image: a\n  db:\n    <<: [*w, *c]\n",
    "services:\n  web:\n    command: |+\n      # >>> zdap orders\n      keep\n\n\n  db:\n    command: >-\n      # <<< zdap orders\n",
    "services:\n  web:\n    command: |\n      last\n\n",
    "services:\n  web:\n    command: \"a\n      # >>> zdap x\n      b\"\n",
    "\"services\":\n  'web': {image: a}\n",
    "services:\n  ? web\n  : image: a\n",
    "services:\n  web:\n    image: ünïcödé 🐘\n    labels: {ä: \"é\"}\n",
    "services:\n  <<: {extra: {image: c}}\n  web: {image: a}\n",
    "x-a: \"# >>> zdap orders\"\nservices:\n  web: {image: a}\n...\n# after\n",
    "services:\n  web:\n    image: a\n    \n",
];

/// Entries of the user's for `orders`, which `--force` has to set aside.
const WITH_ORDERS: &[&str] = &[
    "services:\n  orders:\n    image: postgres\n",
    "services:\n  orders:\n    image: postgres",
    "services:\n  orders: {image: postgres} # mine\n  web: {image: a}\n",
    "services:\n  web:\n    image: a\n\n  # mine\n  orders:\n    # inner\n    image: postgres\n\n    ports:\n      - 1:2\n\n  # about db\n  db:\n    image: b\n",
    "services:\n  orders:\n    command: |+\n      a\n      #| b\n\n\n\n  web: {image: a}\nx-a: 1\n",
    "services:\r\n  web:\r\n    image: a\r\n  orders:\r\n    image: postgres\r\n\r\n    user: x",
    "services:\n    orders:\n        image: postgres\n# the end\n",
    "services:\n  orders:\n  web: {image: a}\n",
    "services:\n  &o orders:\n    x: &p 1\n    y: *p\n  web: {image: a}\n",
    "services:\n  ? orders\n  : image: postgres\n  ? web\n  : image: a\n",
    "{\n  \"services\": {\n    \"orders\": {\n      \"image\": \"postgres\"\n    },\n    \"web\": {\n      \"image\": \"a\"\n    }\n  }\n}\n",
    "{\n  \"services\": {\n    \"web\": {\n      \"image\": \"a\"\n    },\n    \"orders\": {\n      \"image\": \"postgres\"\n    }\n  }\n}",
    "services:\n  orders:\n    image: postgres\n...\n",
];

/// What another YAML parser, nearer to compose's, makes of a text.
fn parsed(text: &str) -> Value {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    serde_yaml::from_str(text).unwrap_or_else(|error| panic!("{error} in\n{text}"))
}

/// Everything but the given services; no services at all are the same as none.
fn others(text: &str, except: &[&str]) -> (Mapping, Mapping) {
    let mut root = mapping(parsed(text));
    let mut services = root.remove("services").map(mapping).unwrap_or_default();
    for service in except {
        services.remove(*service);
    }
    (root, services)
}

fn mapping(value: Value) -> Mapping {
    let value = if let Value::Tagged(tagged) = value {
        tagged.value
    } else {
        value
    };
    if let Value::Mapping(mapping) = value {
        mapping
    } else {
        Mapping::new()
    }
}

fn service_of(text: &str, service: &str) -> Value {
    let services = mapping(parsed(text).get("services").unwrap().clone());
    services
        .get(service)
        .unwrap_or_else(|| panic!("no {service} in\n{text}"))
        .clone()
}

#[test]
fn detach_gives_back_the_very_bytes_of_every_shape() {
    for shape in SHAPES {
        let with =
            attach(shape, &relay("orders"), false).unwrap_or_else(|error| panic!("{error}: {shape:?}"));
        assert_eq!(
            service_of(&with, "orders")["image"],
            "zdap/zdap-proxyd:0.1.0",
            "{shape:?}"
        );
        assert_eq!(others(&with, &["orders"]), others(shape, &[]), "{shape:?}");
        assert_eq!(detach(&with, "orders").unwrap(), *shape, "by way of\n{with}");
    }
}

#[test]
fn what_force_sets_aside_comes_back_as_it_was() {
    for shape in WITH_ORDERS {
        let refused = attach(shape, &relay("orders"), false).unwrap_err();
        assert!(matches!(refused, ComposeError::InOverride { .. }), "{refused}");
        let with = attach(shape, &relay("orders"), true).unwrap_or_else(|error| panic!("{error}: {shape:?}"));
        assert_eq!(
            service_of(&with, "orders")["image"],
            "zdap/zdap-proxyd:0.1.0",
            "{shape:?}"
        );
        assert_eq!(
            others(&with, &["orders"]),
            others(shape, &["orders"]),
            "{shape:?}"
        );
        assert_eq!(detach(&with, "orders").unwrap(), *shape, "by way of\n{with}");
    }
}

#[test]
fn an_attached_service_is_refused_and_by_force_replaced() {
    for shape in SHAPES.iter().chain(WITH_ORDERS) {
        let once = attach(shape, &relay("orders"), true).unwrap();
        let error = attach(&once, &relay("orders"), false).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`orders` is attached already, to clone orders-7f3a"
        );
        let twice = attach(
            &once,
            &RelayService {
                clone: "b2".to_owned(),
                ..relay("orders")
            },
            true,
        )
        .unwrap();
        assert_eq!(attached(&twice).unwrap()[0].clone, "b2");
        assert_eq!(detach(&twice, "orders").unwrap(), *shape);
    }
}

#[test]
fn the_entry_is_readable_and_stands_where_one_would_write_it() {
    let text = "services:\n  # the site\n  web:\n    image: a\n";
    let with = attach(text, &relay("orders"), false).unwrap();
    assert!(
        with.starts_with(concat!(
            "services:\n",
            "  # >>> zdap orders\n",
            "  orders:\n",
            "    image: \"zdap/zdap-proxyd:0.1.0\"\n",
            "    pull_policy: never\n",
            "    environment: !override\n",
            "      LISTEN_PORT: \"5432\"\n",
            "      ZDAP_CLONE: \"orders-7f3a\"\n",
            "      ZDAP_SERVERS: \"10.0.0.1:43210,10.0.0.2:43210\"\n",
            "      ZDAP_IDENTITY: \"/identity\"\n",
        )),
        "{with}"
    );
    assert!(
        with.ends_with("  # <<< zdap orders\n  # the site\n  web:\n    image: a\n"),
        "{with}"
    );
}

#[test]
fn the_labels_say_what_is_attached() {
    assert_eq!(
        attached("services:\n  web: {image: a, labels: {zdap.clone: x}}\n").unwrap(),
        []
    );
    let odd = RelayService {
        owner: "a$b \"é\"\u{7f}".to_owned(),
        ..relay("users")
    };
    let text = attach("{}", &relay("orders"), false).unwrap();
    let text = attach(&text, &odd, false).unwrap();
    let of = |relay: &RelayService| Attached {
        service: relay.service.clone(),
        resource: relay.resource.clone(),
        clone: relay.clone.clone(),
        node: relay.node.clone(),
        owner: relay.owner.clone(),
    };
    let mut found = attached(&text).unwrap();
    found.sort_by(|a, b| a.service.cmp(&b.service));
    assert_eq!(found, [of(&relay("orders")), of(&odd)]);

    let broken = text.replace("zdap.node", "zdap.moved");
    assert!(matches!(
        attached(&broken),
        Err(ComposeError::LabelLost {
            label: "zdap.node",
            ..
        })
    ));
    assert_eq!(
        detach(&detach(&broken, "users").unwrap(), "orders").unwrap(),
        "{}"
    );
}

#[test]
fn names_that_yaml_takes_for_something_else_are_quoted() {
    for name in ["1", "1.5", "on", "null", "0x1", "-", ".a", "no", "True"] {
        for shape in ["", "services: {}"] {
            let with = attach(shape, &relay(name), false).unwrap();
            service_of(&with, name);
            assert_eq!(attached(&with).unwrap()[0].service, name);
            assert_eq!(detach(&with, name).unwrap(), shape);
        }
    }
    for name in ["", "a b", "a/b", "(services)", "é", "a\nb"] {
        assert!(
            matches!(
                attach("", &relay(name), false),
                Err(ComposeError::ServiceName { .. })
            ),
            "{name}"
        );
    }
}

#[test]
fn edits_of_the_users_survive() {
    let with = attach("# mine\n", &relay("orders"), false).unwrap();
    // A service of their own below the `services:` that zdap wrote: the line is theirs now.
    let grown = format!("{with}  web:\n    image: a\n");
    assert_eq!(
        detach(&grown, "orders").unwrap(),
        "# mine\nservices:\n  web:\n    image: a\n"
    );
    // Elsewhere, and within the relay's entry.
    let edited = with
        .replace("# mine", "# ours")
        .replace("pull_policy: never", "mem_limit: 1g");
    assert_eq!(detach(&edited, "orders").unwrap(), "# ours\n");
    // The entry itself is gone, its markers are not.
    let gutted: String = with
        .lines()
        .filter(|line| !line.starts_with("  ") || line.contains('#'))
        .map(|l| format!("{l}\n"))
        .collect();
    assert_eq!(detach(&gutted, "orders").unwrap(), "# mine\n");
    // Another service between the markers would go with them.
    let moved_in = with.replace("  # <<< zdap orders", "  web:\n    image: a\n  # <<< zdap orders");
    let error = detach(&moved_in, "orders").unwrap_err();
    assert!(matches!(error, ComposeError::NotAlone { .. }), "{error}");
}

#[test]
fn markers_out_of_order_are_refused_by_line() {
    let with = attach("services:\n", &relay("orders"), false).unwrap();
    let number = |text: &str, part: &str| text.lines().position(|line| line.contains(part)).unwrap() + 1;
    let line = number(&with, ">>> zdap orders");
    let no_end = with.replace("  # <<< zdap orders\n", "");
    assert_eq!(
        detach(&no_end, "orders").unwrap_err().to_string(),
        format!("line {line}: `# >>> zdap orders` has no end")
    );
    let end = number(&with, "<<< zdap orders") - 1;
    let no_begin = with.replace("  # >>> zdap orders\n", "");
    assert_eq!(
        attach(&no_begin, &relay("users"), false).unwrap_err().to_string(),
        format!("line {end}: `# <<< zdap orders` ends what has not begun")
    );
    let nested = with.replace("    pull_policy: never", "    # >>> zdap users");
    assert!(matches!(
        detach(&nested, "orders"),
        Err(ComposeError::Fence { .. })
    ));
    assert!(attached(&no_end).is_err());
}

#[test]
fn an_override_that_cannot_be_used_says_why_and_where() {
    let with = |text: &str, force| attach(text, &relay("orders"), force).unwrap_err().to_string();
    for (text, expected) in [
        ("- a\n", "line 1: the override is a list, expected a mapping"),
        (
            "text\n",
            "line 1: the override is a single value, expected a mapping",
        ),
        (
            "services: [a]\n",
            "line 1: `services` is a list, expected a mapping",
        ),
        (
            "services: web\n",
            "line 1: `services` is a single value, expected a mapping",
        ),
        (
            "x-s: &s {web: {}}\nservices: *s\n",
            "line 2: `services` is an alias of something elsewhere",
        ),
        (
            "services: !reset\n",
            "line 1: `services` is cut off here by `!reset`",
        ),
        (
            "x-a: 1\nservices:\n  web: {}\n  web: {}\n",
            "line 4: `web` stands here a second time, first on line 3",
        ),
        (
            "x-a: 1\n---\nx-b: 1\n",
            "line 2: a second YAML document begins; one is expected",
        ),
        (
            "services:\n  orders: {}\n",
            "line 2: `orders` is already in the override",
        ),
    ] {
        assert_eq!(with(text, false), expected, "{text}");
    }
    for (text, expected) in [
        (
            "services: {orders: {}, web: {}}\n",
            "line 1: the entry shares its lines with others",
        ),
        (
            "services:\n  orders: &o {image: a}\n  web: *o\n",
            "line 2: the entry sets an anchor that is used elsewhere in the file",
        ),
    ] {
        assert_eq!(with(text, true), expected, "{text}");
    }
    let error = attach("services:\n  web: {\n", &relay("orders"), false).unwrap_err();
    assert!(
        matches!(error, ComposeError::NotYaml { line: 2.., .. }),
        "{error}"
    );
    let error = detach("services: {}\n", "orders").unwrap_err();
    assert_eq!(error.to_string(), "`orders` is not attached, attached are none");
}
