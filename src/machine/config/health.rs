//! The kind of the keys that name services of the system. Pure.

use super::error::ConfigError;
use super::keys::{Shape, ValueKind, refused};

/// Names of systemd's services, in which `*` stands for any text.
#[derive(Debug)]
pub struct UnitNames;

impl ValueKind for UnitNames {
    type Written = Vec<String>;
    type Checked = Vec<String>;
    const SHAPE: Shape = Shape::Texts("^[A-Za-z0-9:_.@*\\\\-]+$");

    fn expected() -> String {
        "names of services, such as app.service or app@*".to_owned()
    }

    fn example() -> String {
        "app.service,driver@*".to_owned()
    }

    fn from_text(text: &str) -> Option<Vec<String>> {
        // A list of none is written as an empty text, which only a default has.
        Some(text.split(',').filter(|one| !one.is_empty()).map(str::to_owned).collect())
    }

    fn check(key: &'static str, written: Vec<String>) -> Result<Vec<String>, ConfigError> {
        match written.iter().find(|name| !is_name(name)) {
            Some(wrong) => Err(refused::<Self>(key, wrong)),
            None => Ok(written),
        }
    }

    fn usable(key: &'static str, written: Vec<String>, problems: &mut Vec<ConfigError>) -> Option<Vec<String>> {
        let mut is_usable = |name: &String| match is_name(name) {
            true => true,
            false => {
                problems.push(refused::<Self>(key, name));
                false
            }
        };
        Some(written.into_iter().filter(|name| is_usable(name)).collect())
    }
}

/// Whether it is a name that systemd could know, of a service. One of another kind would never be found.
fn is_name(name: &str) -> bool {
    let others = [".target", ".socket", ".timer", ".mount", ".path", ".device", ".slice", ".scope", ".swap"];
    // A template runs only as its instances.
    let is_template = name.trim_end_matches(".service").ends_with('@');
    !name.is_empty()
        && !is_template
        && !others.iter().any(|kind| name.ends_with(kind))
        && name.chars().all(|c| c.is_ascii_alphanumeric() || ":_.@*\\-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::UnitNames;
    use crate::machine::config::keys::ValueKind;

    #[test]
    fn names_of_services_are_taken_and_others_refused_by_name() {
        let check =
            |names: &[&str]| UnitNames::check("boot.health_units", names.iter().map(|it| (*it).into()).collect());
        assert_eq!(check(&["app", "app@*.service", "a\\x2db"]).unwrap().len(), 3);
        for wrong in ["my app", "", "app.timer", "/usr/bin/app", "app@", "app@.service"] {
            assert!(check(&["app", wrong]).unwrap_err().to_string().contains("boot.health_units"), "{wrong}");
        }
        let mut problems = Vec::new();
        let usable = UnitNames::usable("boot.health_units", vec!["app".into(), "x y".into()], &mut problems);
        assert_eq!((usable, problems.len()), (Some(vec!["app".to_owned()]), 1));
    }
}
