//! What the project's own compose file says: its services, and what a relay in the place of one has to know.

use super::{
    ComposeError,
    document::{Document, Node, Value},
    ports::{container_port, interpolate},
};

/// The variables that compose fills in: the process's own and those of the project's `.env`.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// What the compose file says about one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComposeService {
    pub name: String,
    /// The container's side of the first TCP port in `ports`, 5432 if there is none.
    pub container_port: u16,
    /// The nearest `network_mode`, its own or of a service that it extends.
    pub network_mode: Option<String>,
    /// What could not be looked at, one sentence each.
    pub warnings: Vec<String>,
}

impl ComposeService {
    /// Returns a service of which nothing is known but the name.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            container_port: POSTGRES,
            network_mode: None,
            warnings: Vec::new(),
        }
    }
}

/// Returns the names of the services in the project's compose file, in its order.
pub fn services(text: &str) -> Result<Vec<String>, ComposeError> {
    let document = parse(text)?;
    let names = named_services(&document)?;
    Ok(names.into_iter().map(|(name, _)| name.to_owned()).collect())
}

/// Reads one service of the project's compose file.
pub fn service(text: &str, name: &str, environment: Environment<'_>) -> Result<ComposeService, ComposeError> {
    let document = parse(text)?;
    let services = named_services(&document)?;
    let mut found = ComposeService::new(name);

    // A service's ports come after those of the service it extends, and so on down.
    let mut ports: Vec<&Node> = Vec::new();
    let mut extended: Vec<String> = Vec::new();
    let mut next = Some(name.to_owned());
    while let Some(name) = next.take() {
        let service = find(&services, &name)?;
        // An empty one is a service nonetheless: compose takes it from the other files.
        if service.is_null() {
            break;
        }
        let service = service.expect_mapping(&format!("service `{name}`"))?;
        if extended.contains(&name) {
            return Err(ComposeError::ExtendsItself {
                line: service.line,
                service: name,
            });
        }
        let network_mode = document.get(service, "network_mode").and_then(Node::text);
        if let (None, Some(mode)) = (&found.network_mode, network_mode) {
            found.network_mode = Some(interpolate(mode, environment));
        }
        if let Some(node) = document.get(service, "ports").filter(|node| !node.is_null()) {
            ports.push(node);
            // What it extends adds nothing to what says `!override` or `!reset`.
            if node.tag.is_some() {
                break;
            }
        }
        if let Some(extends) = document.get(service, "extends") {
            next = extends_within(&document, extends, environment);
            if next.is_none() {
                found.warnings.push(format!(
                    "line {}: `{name}` extends a service of another file, whose ports are not looked at",
                    extends.line
                ));
            }
        }
        extended.push(name);
    }

    for list in ports
        .into_iter()
        .rev()
        .filter(|list| list.tag.as_deref() != Some("!reset"))
    {
        let Value::Sequence(entries) = &list.value else {
            return Err(ComposeError::Shape {
                line: list.line,
                what: "`ports`".to_owned(),
                found: list.found(),
                expected: "a list",
            });
        };
        for entry in entries {
            if let Some(port) = container_port(&document, document.resolve(*entry), environment)? {
                found.container_port = port;
                return Ok(found);
            }
        }
    }
    Ok(found)
}

/// Where Postgres listens when nobody says otherwise.
const POSTGRES: u16 = 5432;

fn parse(text: &str) -> Result<Document, ComposeError> {
    Document::parse(text.strip_prefix('\u{feff}').unwrap_or(text))
}

fn named_services(document: &Document) -> Result<Vec<(&str, &Node)>, ComposeError> {
    let Some(root) = document.root() else {
        return Ok(Vec::new());
    };
    let root = root.expect_mapping("the compose file")?;
    match document.get(root, "services") {
        None => Ok(Vec::new()),
        Some(services) if services.is_null() => Ok(Vec::new()),
        Some(services) => Ok(document.all_entries(services.expect_mapping("`services`")?)),
    }
}

fn find<'a>(services: &[(&str, &'a Node)], name: &str) -> Result<&'a Node, ComposeError> {
    if let Some((_, node)) = services.iter().find(|(known, _)| *known == name) {
        return Ok(node);
    }
    let nearest = services
        .iter()
        .map(|(known, _)| (strsim::jaro_winkler(known, name), *known))
        .filter(|(likeness, _)| *likeness >= LIKE_ENOUGH)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, known)| known.to_owned());
    let known = services.iter().map(|(known, _)| (*known).to_owned()).collect();
    Err(ComposeError::NoService {
        service: name.to_owned(),
        known,
        nearest,
    })
}

/// What clap asks of a suggestion, too.
const LIKE_ENOUGH: f64 = 0.7;

/// Returns the service of this file that `extends` names; `None` if it is one of another file.
fn extends_within(document: &Document, extends: &Node, environment: Environment<'_>) -> Option<String> {
    let service = match document.get(extends, "file") {
        Some(_) => None,
        None => extends
            .text()
            .or_else(|| document.get(extends, "service").and_then(Node::text)),
    };
    service.map(|service| interpolate(service, environment))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(text: &str) -> Result<u16, ComposeError> {
        service(text, "orders", &|_| None).map(|service| service.container_port)
    }

    #[test]
    fn services_come_in_the_order_of_the_file() {
        let text = "\u{feff}x-more: &more {extra: {image: c}}\nservices:\n  web: {image: a}\n  \"orders\":\n  <<: *more\n";
        assert_eq!(services(text).unwrap(), ["web", "orders", "extra"]);
        for empty in ["", "# nothing\n", "services:\n", "services: {}\n", "x-a: 1\n"] {
            assert!(services(empty).unwrap().is_empty(), "{empty}");
        }
    }

    #[test]
    fn the_first_tcp_port_counts_wherever_it_is_written() {
        for (text, expected) in [
            ("services:\n  orders:\n    image: a\n", 5432),
            ("services:\n  orders:\n", 5432),
            ("services:\n  orders: {ports: []}\n", 5432),
            ("services:\n  orders:\n    ports:\n", 5432),
            (
                "services:\n  orders:\n    ports:\n    - 53:53/udp\n    - 5433:5431\n    - 1:1\n",
                5431,
            ),
            ("services:\n  orders:\n    ports: &p [1:2]\n", 2),
            ("x-p: &p\n  - 1:7\nservices:\n  orders:\n    ports: *p\n", 7),
            ("x-e: &e 1:8\nservices:\n  orders:\n    ports: [*e]\n", 8),
            (
                "x-b: &b\n  ports: [1:9]\nservices:\n  orders:\n    <<: *b\n    image: a\n",
                9,
            ),
            (
                "x-a: &a {ports: [1:9]}\nx-b: &b {ports: [1:8]}\nservices:\n  orders:\n    <<: [*a, *b]\n",
                9,
            ),
            (
                "x-a: &a {ports: [1:9]}\nx-b: &b\n  <<: *a\nservices:\n  orders:\n    <<: *b\n",
                9,
            ),
            (
                "x-a: &a {ports: [1:9]}\nservices:\n  orders:\n    <<: *a\n    ports: [1:3]\n",
                3,
            ),
            (
                "services:\n  base:\n    ports: [1:10]\n  orders:\n    extends: base\n",
                10,
            ),
            (
                "services:\n  base:\n    ports: [1:10]\n  orders:\n    extends: {service: base}\n    ports: [1:3]\n",
                10,
            ),
            (
                "services:\n  base:\n    ports: [1:10]\n  orders:\n    extends: base\n    ports: !override [1:3]\n",
                3,
            ),
            (
                "services:\n  base:\n    ports: [1:10]\n  orders:\n    extends: base\n    ports: !reset []\n",
                5432,
            ),
        ] {
            assert_eq!(port(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn the_nearest_network_mode_counts() {
        let text = "services:\n  base: {network_mode: host}\n  orders: {extends: base}\n  web: {extends: base, network_mode: none}\n";
        let mode = |name| service(text, name, &|_| None).unwrap().network_mode;
        assert_eq!(mode("orders").as_deref(), Some("host"));
        assert_eq!(mode("web").as_deref(), Some("none"));
    }

    #[test]
    fn what_another_file_says_is_warned_about() {
        let text = "services:\n  orders:\n    extends: {file: common.yml, service: db}\n    ports: [1:3]\n";
        let found = service(text, "orders", &|_| None).unwrap();
        assert_eq!(found.container_port, 3);
        assert_eq!(
            found.warnings,
            ["line 3: `orders` extends a service of another file, whose ports are not looked at"]
        );
    }

    #[test]
    fn a_compose_file_that_cannot_be_used_says_why_and_where() {
        for (text, expected) in [
            (
                "services: [a]\n",
                "line 1: `services` is a list, expected a mapping",
            ),
            ("- a\n", "line 1: the compose file is a list, expected a mapping"),
            (
                "services:\n  orders: yes\n",
                "line 2: service `orders` is a single value, expected a mapping",
            ),
            (
                "services:\n  orders:\n    ports: 5432\n",
                "line 3: `ports` is a single value, expected a list",
            ),
            (
                "services:\n  orders:\n    ports:\n    - 5432:db\n",
                "line 4: port `5432:db`: the container's port is not a number",
            ),
            (
                "services:\n  orders:\n    extends: orders\n",
                "line 3: service `orders` extends itself",
            ),
            (
                "services:\n  a: {}\n  b: {}\n  a: {}\n",
                "line 4: `a` stands here a second time, first on line 2",
            ),
            (
                "a: 1\n---\nb: 1\n",
                "line 2: a second YAML document begins; one is expected",
            ),
        ] {
            assert_eq!(port(text).unwrap_err().to_string(), expected, "{text}");
        }
        let error = port("services:\n  orders: {\n").unwrap_err();
        assert!(matches!(error, ComposeError::NotYaml { .. }), "{error}");
        assert!(error.hint().is_some());
    }

    #[test]
    fn a_service_that_is_absent_brings_the_nearest_to_mind() {
        let error = service("services:\n  web: {}\n  orders: {}\n", "order", &|_| None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no service `order` in the compose file, which has `web`, `orders`"
        );
        assert_eq!(error.hint().as_deref(), Some("did you mean `orders`?"));
        let error = service("", "orders", &|_| None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no service `orders` in the compose file, which has none"
        );
    }

    #[test]
    fn circles_of_aliases_come_to_an_end() {
        let text = "services: &s\n  orders: &o\n    <<: [*o, *o]\n    ports: [1:4]\n    x: *s\n";
        assert_eq!(port(text).unwrap(), 4);
    }
}
