//! `zdap set user`, and the name of who has not set one.

use serde::Serialize;
use zdap_proto::name::UserName;

use crate::context::Context;
use crate::error::Failure;

#[derive(Serialize)]
struct Document<'a> {
    user: &'a UserName,
}

/// Sets the name that is asked for when enrolling.
pub(super) fn set(context: &Context<'_>, name: &str) -> Result<(), Failure> {
    let user: UserName = name.parse()?;
    context
        .home
        .change(|settings| settings.user = Some(user.clone()))?;
    let others: Vec<String> = context
        .home
        .identities()?
        .iter()
        .filter(|identity| identity.subject().owner() != Some(&user))
        .map(|identity| format!("{} in cluster {}", identity.subject(), identity.cluster()))
        .collect();
    for other in others {
        context.output.say(&format!(
            "you stay {other} until you enrol there again with a token"
        ));
    }
    context.output.say(&format!("user is `{user}`"));
    context.output.data("", &Document { user: &user })
}

/// Returns `$USER@hostname`, as far as its letters may be in a name.
pub(super) fn default_name() -> Option<UserName> {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).ok();
    let host = gethostname::gethostname();
    made_up(user.as_deref().unwrap_or("user"), &host.to_string_lossy())
}

fn made_up(user: &str, host: &str) -> Option<UserName> {
    let plain = |text: &str| {
        let allowed = |letter: &char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_');
        let text: String = text.chars().filter(allowed).take(LONGEST_PART).collect();
        let text = text.trim_matches(|letter: char| !letter.is_ascii_alphanumeric());
        text.replace("..", ".")
    };
    let (user, host) = (plain(user), plain(host));
    match (user.is_empty(), host.is_empty()) {
        (true, _) => None,
        (false, true) => user.parse().ok(),
        (false, false) => format!("{user}@{host}").parse().ok(),
    }
}

/// Two of them and the `@` are within the length of a name.
const LONGEST_PART: usize = 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_made_up_of_what_may_be_in_one() {
        let name = |user, host| made_up(user, host).map(|name| name.to_string());
        assert_eq!(name("ada", "laptop.local").unwrap(), "ada@laptop.local");
        assert_eq!(name("DOMAIN\\ada l.", "-lap/top-").unwrap(), "DOMAINadal@laptop");
        assert_eq!(name("ada", "").unwrap(), "ada");
        assert_eq!(name("é", "laptop"), None);
        assert!(name(&"a".repeat(300), &"b".repeat(300)).is_some());
    }
}
