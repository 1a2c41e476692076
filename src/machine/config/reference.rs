//! The reference of the configuration, made of the rows that define it: `docs/configuration.md` and a JSON schema.
//! Pure.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::{BootArgs, BootArgument, ConfigKey, Presence, SYSTEM_ARGUMENTS, Section, Shape, sections};

const HEAD: &str = "\
# Configuration

Recovery reads `reflash.toml` in three layers, and the later one wins key by key:

1. `/etc/reflash/reflash.toml` of the recovery initramfs ([initramfs/reflash.toml](../initramfs/reflash.toml)),
2. `reflash.toml` of the recovery partition,
3. `reflash.ARGUMENT=VALUE` on the kernel command line, for the keys that have an argument.

The commands of the running system (`reflash update`, `reflash request newer`, `reflash report` and the others) read:

1. `/etc/reflash/reflash.toml` of the system, which a release brings,
2. `reflash.toml` of the recovery partition: what stands there, no release changes,
3. the options of the command line, such as `--url` and `--channel`.

So a release can set what the recovery partition leaves open, for the running system alone: recovery never reads a file
of the system. What says which release is the robot's (`release.channel`, `release.ring`, `machine.hardware`) counts on
the recovery partition alone, so that both decide alike. `--config FILE` takes the place of both files.

A command, the builder and provisioning refuse a key that is not known with its name and line, and so a value that is out
of range. A recovery, and the start of a system, have nobody to ask: they leave out such a key with a warning, which the
console, the black box and the report have, and everything else counts. Where the file of the recovery partition is
damaged, they use the copy of it on the state partition. Recoveries of 0.1.0 refuse a file with a key that is marked as
newer: set it only on robots both of whose slots are newer ([compatibility.md](compatibility.md)).

Editors that know JSON schemas check the file as it is written:
[configuration.schema.json](configuration.schema.json).

This page and the schema are made of the rows in `src/machine/config.rs` and `src/machine/config/`:
`UPDATE_DOCS=1 cargo test -p reflash --test command_line` writes them anew.
";

const ARGUMENTS: &str = "
## Kernel arguments

GRUB passes these beside the keys above. An argument that begins with `reflash.` and is not known is logged and left out,
so that a newer boot script never keeps recovery from starting; beside an action that deletes data it is refused, for it may
have been meant to restrict that action.

| argument | meaning |
|---|---|
";

/// The page `docs/configuration.md`.
#[must_use]
pub fn markdown() -> String {
    let mut page = HEAD.to_owned();
    for section in sections() {
        let _ = write!(page, "\n## `{}`\n\n{}\n\n", heading(section), section.doc.trim());
        page += "| key | type | value | default | kernel argument | meaning |\n|---|---|---|---|---|---|\n";
        section.keys.iter().for_each(|key| page += &key_row(section, key));
    }
    page += ARGUMENTS;
    BootArgs::ARGUMENTS.iter().for_each(|argument| page += &argument_row(argument));
    page += "\nThe initramfs of the installed system has its own:\n\n| argument | meaning |\n|---|---|\n";
    SYSTEM_ARGUMENTS.iter().for_each(|argument| page += &argument_row(argument));
    page
}

/// The line that begins a section in a file.
fn heading(section: &Section) -> String {
    let is_list = sections().flat_map(|one| one.keys).any(|key| match key.shape {
        Shape::Tables(listed) => listed.path == section.path,
        _ => false,
    });
    if is_list { format!("[[{}]]", section.path) } else { format!("[{}]", section.path) }
}

fn key_row(section: &Section, key: &ConfigKey) -> String {
    let default = match (key.presence, key.shape) {
        (_, Shape::Table(_)) => "those of its keys".to_owned(),
        (Presence::Required, _) => "must be set".to_owned(),
        (Presence::Default(""), _) => "none".to_owned(),
        (Presence::Default(value), _) => format!("`{value}`"),
        (Presence::Optional(then), _) => then.to_owned(),
    };
    let argument = key.argument.map(|name| match section.path {
        "provision.disk" => format!("`reflash.disk={name}`"),
        _ => format!("`reflash.{name}`"),
    });
    let value = match key.shape {
        Shape::Table(section) | Shape::Tables(section) => format!("`{}`, below", heading(section)),
        _ => cell((key.expected)().as_str()),
    };
    let argument = argument.unwrap_or_default();
    let (path, name, kind) = (section.path, key.name, key.shape.name());
    let newer = key.newer_than.map(|version| format!(" *Newer than {version}.*")).unwrap_or_default();
    format!("| `{path}.{name}` | {kind} | {value} | {default} | {argument} | {}{newer} |\n", cell(key.doc))
}

fn argument_row(argument: &BootArgument) -> String {
    let value = if argument.value.is_empty() { String::new() } else { format!("={}", argument.value) };
    format!("| {} | {} |\n", cell(&format!("`reflash.{}{value}`", argument.name)), cell(argument.doc))
}

/// The text as it may stand in a cell of a table.
fn cell(text: &str) -> String {
    text.trim().replace('|', "\\|")
}

/// The JSON schema of one configuration file, `docs/configuration.schema.json`.
#[must_use]
pub fn json_schema() -> String {
    let mut properties = Map::new();
    for section in sections().filter(|section| !section.path.contains('.')) {
        properties.insert(section.path.to_owned(), table(section));
    }
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "reflash.toml",
        "description": "The configuration of a machine that reflash recovers. A file may leave out every key, since layers are merged.",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    });
    format!("{schema:#}\n")
}

fn table(section: &Section) -> Value {
    let keys: Map<String, Value> =
        section.keys.iter().map(|key| (key.name.to_owned(), property(section, key))).collect();
    json!({
        "description": section.doc.trim(), "type": "object", "additionalProperties": false, "properties": keys,
    })
}

fn property(section: &Section, key: &ConfigKey) -> Value {
    let text = |pattern: &str| match pattern {
        "" => json!({ "type": "string" }),
        pattern => json!({ "type": "string", "pattern": pattern }),
    };
    let mut schema = match key.shape {
        Shape::Text(pattern) => text(pattern),
        Shape::Texts(pattern) => json!({ "type": "array", "items": text(pattern) }),
        Shape::Whole { min, max: u64::MAX, .. } => json!({ "type": "integer", "minimum": min }),
        Shape::Whole { min, max, or_zero: false } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Shape::Whole { min, max, or_zero: true } => {
            json!({ "type": "integer", "anyOf": [{ "const": 0 }, { "minimum": min, "maximum": max }] })
        }
        Shape::Flag => json!({ "type": "boolean" }),
        Shape::Table(section) => return table(section),
        Shape::Tables(section) => {
            return json!({ "type": "array", "items": table(section), "description": key.doc.trim() });
        }
    };
    let mut doc = key.doc.trim().to_owned();
    if !matches!(key.shape, Shape::Flag) {
        let _ = write!(doc, " Value: {}.", (key.expected)());
    }
    match key.presence {
        Presence::Required => doc += " One of the layers must set it.",
        Presence::Optional(then) => {
            let _ = write!(doc, " Without it: {then}.");
        }
        Presence::Default(text) => {
            schema["default"] = as_json(key.shape, text);
        }
    }
    if let Some(argument) = key.argument.filter(|_| section.path != "provision.disk") {
        let _ = write!(doc, " Kernel argument: reflash.{argument}.");
    }
    schema["examples"] = json!([as_json(key.shape, &(key.example)())]);
    schema["description"] = Value::from(doc);
    schema
}

/// The text of a kernel argument or of a default as the value that a configuration file has.
fn as_json(shape: Shape, text: &str) -> Value {
    match shape {
        Shape::Whole { .. } => text.parse::<u64>().map_or(Value::Null, Value::from),
        Shape::Flag => Value::from(text != "false"),
        Shape::Texts(_) => json!(text.split(',').filter(|one| !one.is_empty()).collect::<Vec<_>>()),
        Shape::Text(_) | Shape::Table(_) | Shape::Tables(_) => Value::from(text),
    }
}

#[cfg(test)]
mod tests {
    use super::{ConfigKey, Section, Shape, heading, json_schema, markdown};
    use crate::machine::config::{BootArgs, Config, Layer, Presence, SYSTEM_ARGUMENTS, known_arguments, sections};

    fn keys() -> impl Iterator<Item = (&'static Section, &'static ConfigKey)> {
        sections().flat_map(|section| section.keys.iter().map(move |key| (section, key)))
    }

    /// A file that sets one key to its example.
    fn file_with(section: &Section, key: &ConfigKey) -> String {
        let example = (key.example)();
        let value = match key.shape {
            Shape::Table(_) => "{ serial = 'S1*', min_gb = 100, removable = true }".to_owned(),
            Shape::Tables(_) => "[{ interface = 'eth0', addresses = ['192.0.2.7/24'] }]".to_owned(),
            shape => super::as_json(shape, &example).to_string(),
        };
        // A gateway needs an address beside it.
        let beside = if key.name == "gateways" { "addresses = ['192.0.2.7/24', '2001:db8::7/64']\n" } else { "" };
        format!("{}\n{beside}{} = {value}\n", heading(section), key.name)
    }

    #[test]
    fn every_key_reads_the_same_from_a_file_and_from_its_kernel_argument() {
        for (section, key) in keys() {
            let file = Layer::parse("test", &file_with(section, key)).unwrap();
            assert_ne!(file, Layer::default(), "{}", key.name);
            assert_eq!(
                Layer::default().overridden_by(file.clone()),
                file,
                "{} is lost when layers are merged",
                key.name
            );
            assert_eq!(
                file.clone().overridden_by(Layer::default()),
                file,
                "{} is lost when layers are merged",
                key.name
            );
            let example = (key.example)();
            let Some(argument) = key.argument else { continue };
            let line = match section.path {
                "provision.disk" => format!("reflash.disk={argument}={example}").trim_end_matches('=').to_owned(),
                _ => format!("reflash.{argument}={example}"),
            };
            let (layer, boot) = Layer::from_kernel_command_line(&line).unwrap();
            assert_eq!((layer, boot), (file, BootArgs::default()), "{line}");
        }
    }

    #[test]
    fn every_example_and_every_default_is_right_and_every_bound_is_kept() {
        let required =
            "[release]\nurls = ['http://a.example']\n[machine]\nproduct = 'x'\n[network]\naddress = '192.0.2.7/24'\n";
        let with = |text: &str| {
            let over = Layer::parse("test", text).unwrap();
            Config::resolve(Layer::parse("test", required).unwrap().overridden_by(over))
        };
        let by_default = with("").unwrap();
        for (section, key) in keys() {
            with(&file_with(section, key)).unwrap();
            let set = |value: u64| with(&format!("{}\n{} = {value}\n", heading(section), key.name));
            if let (Shape::Whole { .. }, Presence::Default(value)) = (key.shape, key.presence) {
                assert_eq!(set(value.parse().unwrap()).unwrap(), by_default, "{}", key.name);
            }
            let Shape::Whole { min, max, or_zero } = key.shape else { continue };
            assert_eq!(set(0).is_ok(), or_zero || min == 0, "{}", key.name);
            assert!(set(min).is_ok() && (min == 0 || min == 1 || set(min - 1).is_err()), "{}", key.name);
            // TOML has no number beyond that of 63 bits.
            assert!(max == u64::MAX || set(max).is_ok(), "{}", key.name);
            let error = if max == u64::MAX { continue } else { set(max + 1).unwrap_err().to_string() };
            let named = format!("{}.{}", section.path, key.name);
            assert!(error.contains(&named) && error.contains(&(key.expected)()), "{error}");
        }
    }

    #[test]
    fn every_argument_is_accepted_and_named_beside_one_that_is_not_known() {
        let known = known_arguments();
        let error = Layer::from_kernel_command_line("reflash.x reflash.action=provision").unwrap_err().to_string();
        for argument in &known {
            assert!(error.contains(argument.as_str()), "{argument}: {error}");
            let line = match argument.as_str() {
                "reflash.media" | "reflash.origin" => format!("{argument}=00000000-0000-8000-8000-000000000000"),
                "reflash.action" => format!("{argument}=reflash"),
                _ => match keys().find(|(_, key)| key.argument.is_some_and(|name| argument.ends_with(name))) {
                    Some((_, key)) => format!("{argument}={}", (key.example)()),
                    None => format!("{argument}=x"),
                },
            };
            let (layer, boot) = Layer::from_kernel_command_line(&line).unwrap();
            assert!(boot.unknown.is_empty(), "{line}");
            let without_effect = (layer, boot) == (Layer::default(), BootArgs::default());
            let of_system = SYSTEM_ARGUMENTS.iter().any(|known| argument.ends_with(known.name));
            assert_eq!(without_effect, of_system, "{line}");
        }
        let mut names = known.clone();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), known.len(), "an argument has two meanings");
    }

    #[test]
    fn every_key_and_argument_stands_in_the_page_and_in_the_schema() {
        let (page, schema) = (markdown(), json_schema());
        let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
        for (section, key) in keys() {
            assert!(page.contains(&format!("| `{}.{}` | ", section.path, key.name)), "{}", key.name);
            let mut pointer = format!("/properties/{}", section.path.replace('.', "/properties/"));
            if heading(section).starts_with("[[") {
                pointer += "/items";
            }
            let pointer = format!("{pointer}/properties/{}", key.name);
            let property = schema.pointer(&pointer).unwrap_or_else(|| panic!("{pointer}"));
            assert!(property["description"].as_str().is_some_and(|text| text.ends_with('.')), "{pointer}");
        }
        for argument in known_arguments() {
            assert!(page.contains(&format!("`{argument}`")) || page.contains(&format!("`{argument}=")), "{argument}");
        }
    }
}
