//! What a first project is made from: options, answers, and what this host suggests.

use std::net::UdpSocket;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use reflash::machine::config::{has_usable_port, is_path_segment};
use reflash::machine::hostname;
use reflash::machine::placeholder::is_placeholder;

use super::ask::Questioner;
use crate::project;

/// Options of `init`. What is not given is asked for.
#[derive(Debug, Default, clap::Args)]
pub struct InitArgs {
    /// Directory of the project. Default: the current one.
    #[arg(value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// Name of the product: letters, digits, '-', '_' and '.'.
    #[arg(long)]
    pub product: Option<String>,
    /// Hardware it runs on (DMI product name): exact, or a prefix with *; repeat for several. With --yes: any.
    #[arg(long)]
    pub hardware: Vec<String>,
    /// Channel to publish in. Default: stable.
    #[arg(long)]
    pub channel: Option<String>,
    /// URL that machines get releases from; repeat for mirrors. Default: `serve` on this host.
    #[arg(long = "url", value_name = "URL")]
    pub urls: Vec<String>,
    /// Host name template of the machines. Default: the product and {serial|mac}.
    #[arg(long, value_name = "TEMPLATE")]
    pub hostname: Option<String>,
    /// User of the image. Default: pilot.
    #[arg(long)]
    pub user: Option<String>,
    /// Public ssh key that may log in as that user.
    #[arg(long, value_name = "FILE.pub")]
    pub ssh_key: Option<PathBuf>,
    /// Debian or Ubuntu code name of the system. Default: that of this host.
    #[arg(long)]
    pub suite: Option<String>,
    /// Lay disks out for a BIOS that does not start from a GPT.
    #[arg(long)]
    pub mbr: bool,
    /// Protect the secret key with a password, which is asked for, or taken from REFLASH_KEY_PASSWORD.
    #[arg(long)]
    pub password: bool,
}

/// Answers that this host suggests.
#[derive(Debug, Default)]
pub struct Host {
    /// DMI product name, if it is that of a kind of machine.
    hardware: Option<String>,
    /// URL of `serve` on this host.
    url: Option<String>,
    /// Public ssh keys of the person.
    ssh_keys: Vec<PathBuf>,
    /// Code name of the distribution.
    suite: Option<String>,
    /// Home of the person.
    home: PathBuf,
}

impl Host {
    /// Looks at this host.
    pub fn look() -> Self {
        let hardware = std::fs::read_to_string("/sys/class/dmi/id/product_name").ok();
        let hardware = hardware.map(|name| name.trim().to_owned()).filter(|name| !is_placeholder(name));
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        // In a root shell the keys of the person who became root are meant, if root has none.
        let before = std::env::var("SUDO_USER").ok().and_then(|user| home_of(&users, &user));
        let ssh_keys = [Some(home.clone()), before].into_iter().flatten().flat_map(|home| public_keys(&home)).collect();
        let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
        Self { hardware, url: own_url(), ssh_keys, suite: suite.map(|name| name.trim_matches('"').to_owned()), home }
    }

    /// What a shell makes of a leading `~`: an answer was read by no shell.
    fn at_home(&self, path: PathBuf) -> PathBuf {
        path.strip_prefix("~").map(|below| self.home.join(below)).unwrap_or(path)
    }
}

/// The home of a user, as `/etc/passwd` has it.
fn home_of(users: &str, user: &str) -> Option<PathBuf> {
    let mut lines = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.find(|fields| fields.first() == Some(&user)).and_then(|fields| fields.get(5).map(PathBuf::from))
}

/// The public ssh keys below a home, in order of their names.
fn public_keys(home: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(home.join(".ssh")).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut keys: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|end| end == "pub")).collect();
    keys.sort();
    keys
}

/// The address through which this host reaches others. No packet is sent: the kernel only chooses a route.
fn own_url() -> Option<String> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(format!("http://{}:8080", socket.local_addr().ok()?.ip()))
}

/// Code names of Debian.
const DEBIAN: &[&str] = &["bullseye", "bookworm", "trixie", "forky", "duke", "sid"];
/// Code names of Ubuntu.
const UBUNTU: &[&str] = &["focal", "jammy", "noble", "plucky", "questing", "resolute"];

/// Whether a code name is one of Debian or Ubuntu, as far as they are known here.
pub fn is_known_suite(suite: &str) -> bool {
    DEBIAN.contains(&suite) || UBUNTU.contains(&suite)
}

/// Answers to one question before the program gives up.
const MOST_ATTEMPTS: u32 = 5;

/// Users and groups of base-passwd, of systemd and of the packages of the first recipe: `useradd` refuses their names,
/// after the minutes in which the packages were installed.
const TAKEN_NAMES: &[&str] = &[
    "root",
    "daemon",
    "bin",
    "sys",
    "sync",
    "games",
    "man",
    "lp",
    "mail",
    "news",
    "uucp",
    "proxy",
    "www-data",
    "backup",
    "list",
    "irc",
    "gnats",
    "nobody",
    "nogroup",
    "adm",
    "tty",
    "disk",
    "kmem",
    "dialout",
    "fax",
    "voice",
    "cdrom",
    "floppy",
    "tape",
    "sudo",
    "audio",
    "dip",
    "operator",
    "src",
    "shadow",
    "utmp",
    "video",
    "sasl",
    "plugdev",
    "staff",
    "users",
    "input",
    "sgx",
    "kvm",
    "render",
    "crontab",
    "messagebus",
    "sshd",
    "systemd-network",
    "systemd-resolve",
    "systemd-timesync",
    "systemd-journal",
];

fn read_ssh_key(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| {
        format!("read the ssh key {}; `ssh-keygen -t ed25519` makes a pair, if there is none", path.display())
    })?;
    ensure!(
        !text.contains("PRIVATE KEY"),
        "{} is a private key, which must not leave this host: give the public one, with .pub",
        path.display()
    );
    let is_key = |line: &str| ["ssh-", "ecdsa-", "sk-"].iter().any(|kind| line.contains(kind));
    ensure!(
        text.lines().any(is_key),
        "{} has no public ssh key: a line of one begins with ssh-ed25519 or the like",
        path.display()
    );
    Ok(text)
}

/// A first look at a URL that was typed; the files are checked as a machine reads them.
fn usable_url(url: &str) -> Result<String> {
    let has_host =
        |scheme: &str| url.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'));
    ensure!(
        has_host("http://") || has_host("https://") || url.starts_with("file:///"),
        "URL {url:?}: expected http://…, https://… or file:///…"
    );
    ensure!(has_usable_port(url), "URL {url:?}: expected a port from 1 to 65535 behind the host");
    Ok(url.to_owned())
}

/// Takes an option, or asks a question with its default until the answer can be used: a slip costs that answer, and not
/// those before it.
fn given_or_asked<T>(
    given: &Option<String>,
    ask: &mut Questioner<'_>,
    (question, default): (&str, &str),
    check: impl Fn(&str) -> Result<T>,
) -> Result<T> {
    if let Some(given) = given {
        return check(given);
    }
    let mut attempt = 1;
    loop {
        match check(&ask(question, default)?) {
            Err(error) if attempt < MOST_ATTEMPTS => eprintln!("  {error:#}"),
            checked => return checked,
        }
        attempt += 1;
    }
}

/// Everything that the files of a project depend on.
#[derive(Debug)]
pub struct Answers {
    product: String,
    hardware: Vec<String>,
    channel: String,
    /// Addresses that releases come from.
    pub urls: Vec<String>,
    hostname: String,
    user: String,
    suite: String,
    /// Whether disks have an MBR.
    pub mbr: bool,
    /// Public ssh keys, a line each.
    pub ssh_key: Option<String>,
}

impl Answers {
    /// Takes the options, and asks for the rest.
    ///
    /// # Errors
    /// When an answer cannot be used.
    pub fn collect(args: &InitArgs, host: &Host, ask: &mut Questioner<'_>) -> Result<Self> {
        let product = given_or_asked(&args.product, ask, ("Name of the product", "my-robot"), |product| {
            ensure!(
                is_path_segment(product) && product.starts_with(|c: char| c.is_ascii_alphanumeric()),
                "product {product:?}: expected letters, digits, '-', '_' and '.', a letter or digit first"
            );
            Ok(product.to_owned())
        })?;
        let hardware = if args.hardware.is_empty() {
            let here = host.hardware.as_ref().map_or_else(String::new, |name| format!(", here {name:?}"));
            let question =
                format!("Hardware (/sys/class/dmi/id/product_name of the machines{here}; * at the end fits any)");
            vec![ask(&question, "*")?]
        } else {
            args.hardware.clone()
        };
        project::check_hardware(&hardware)?;
        let channel = args.channel.clone().unwrap_or_else(|| "stable".to_owned());
        ensure!(is_path_segment(&channel), "channel {channel:?}: expected letters, digits, '-', '_' and '.'");
        let urls = if args.urls.is_empty() {
            let own = host.url.clone().unwrap_or_else(|| "http://192.0.2.1:8080".to_owned());
            let question = "URL that machines get releases from (`serve` on this host is offered)";
            vec![given_or_asked(&None, ask, (question, &own), usable_url)?]
        } else {
            args.urls.clone()
        };
        let hostname = args.hostname.clone().unwrap_or_else(|| format!("{product}-{{serial|mac}}"));
        hostname::expand(&hostname, |_| Some("X7Q2".to_owned()))?;
        let user = given_or_asked(&args.user, ask, ("User of the robots", "pilot"), |user| {
            ensure!(
                user.starts_with(|c: char| c.is_ascii_lowercase())
                    && user.len() <= 32
                    && user.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c)),
                "user {user:?}: expected lower-case letters, digits, '-' and '_', a letter first, 32 at most"
            );
            ensure!(
                !TAKEN_NAMES.contains(&user),
                "user {user:?}: Debian has a user or a group of that name, so that another cannot be made; take another \
                 name"
            );
            Ok(user.to_owned())
        })?;
        let suite = args.suite.clone().or_else(|| host.suite.clone()).unwrap_or_else(|| "bookworm".to_owned());
        ensure!(
            host.suite.as_ref() == Some(&suite) || is_known_suite(&suite),
            "suite {suite:?} is none that is known here: {}, {}; for another one write distribution.suite into recipe.toml",
            DEBIAN.join(", "),
            UBUNTU.join(", ")
        );
        let found = host.ssh_keys.first().map_or_else(String::new, |path| path.display().to_string());
        let ssh_key = match &args.ssh_key {
            Some(path) => Some(read_ssh_key(&host.at_home(path.clone()))?),
            None => {
                let question = ("Public ssh key that may log in (a file; empty for none)", &*found);
                given_or_asked(&None, ask, question, |answer| match answer {
                    "" => Ok(None),
                    path => read_ssh_key(&host.at_home(path.into())).map(Some),
                })?
            }
        };
        Ok(Self { product, hardware, channel, urls, hostname, user, suite, mbr: args.mbr, ssh_key })
    }

    /// Fills a template: `@NAME@` becomes a value, quoted as TOML wants it where it is a text of its own.
    ///
    /// # Errors
    /// When a value cannot be written.
    pub fn fill(&self, template: &str) -> Result<String> {
        // Every text of JSON is one of TOML, with the same escapes.
        let quoted = |text: &String| serde_json::to_string(text);
        let list = |texts: &[String]| {
            let quoted = texts.iter().map(quoted).collect::<Result<Vec<_>, _>>();
            quoted.map(|quoted| format!("[{}]", quoted.join(", ")))
        };
        let debian = DEBIAN.contains(&self.suite.as_str());
        let (components, kernel) = if debian {
            ("[\"main\", \"non-free-firmware\"]", "linux-image-amd64")
        } else {
            ("[\"main\", \"universe\"]", "linux-image-generic")
        };
        let is_text = template.starts_with("# @PRODUCT@");
        let product = if is_text { self.product.clone() } else { quoted(&self.product)? };
        let values = [
            ("@PRODUCT@", product),
            ("@PRODUCT_WORD@", self.product.clone()),
            ("@HARDWARE@", list(&self.hardware)?),
            ("@CHANNEL@", quoted(&self.channel)?),
            ("@CHANNEL_WORD@", self.channel.clone()),
            ("@URLS@", list(&self.urls)?),
            ("@HOSTNAME@", quoted(&self.hostname)?),
            ("@USER@", self.user.clone()),
            ("@SUITE@", self.suite.clone()),
            ("@COMPONENTS@", components.to_owned()),
            ("@KERNEL@", kernel.to_owned()),
        ];
        Ok(values.iter().fold(template.to_owned(), |text, (name, value)| text.replace(name, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::{Answers, Host, InitArgs, home_of, public_keys};
    use std::path::{Path, PathBuf};

    #[test]
    fn a_person_is_asked_for_what_no_option_gives() {
        let host =
            Host { hardware: Some("NUC11".into()), url: Some("http://192.0.2.7:8080".into()), ..Host::default() };
        let mut asked = Vec::new();
        let mut ask = |question: &str, default: &str| {
            asked.push(format!("{question} [{default}]"));
            Ok(if question.starts_with("Hardware") { "NUC11*".to_owned() } else { default.to_owned() })
        };
        let args = InitArgs { product: Some("arm".into()), ..InitArgs::default() };
        let answers = Answers::collect(&args, &host, &mut ask).unwrap();
        assert_eq!((answers.product.as_str(), answers.hardware), ("arm", vec!["NUC11*".to_owned()]));
        assert_eq!((answers.urls, answers.user.as_str()), (vec!["http://192.0.2.7:8080".to_owned()], "pilot"));
        assert!(!asked.iter().any(|question| question.contains("product [")), "{asked:?}");
        assert!(asked.iter().any(|question| question.contains("here \"NUC11\"")), "{asked:?}");
    }

    #[test]
    fn answers_that_cannot_work_are_refused() {
        let of = |args: &InitArgs| {
            let made = Answers::collect(args, &Host::default(), &mut |_, default| Ok(default.to_owned()));
            made.map(drop).unwrap_err().to_string()
        };
        let args = InitArgs::default;
        assert!(of(&InitArgs { product: Some("a b".into()), ..args() }).contains("product"));
        assert!(of(&InitArgs { product: Some("../a".into()), ..args() }).contains("product"));
        assert!(of(&InitArgs { channel: Some("a/b".into()), ..args() }).contains("channel"));
        assert!(of(&InitArgs { user: Some("Root; rm".into()), ..args() }).contains("user"));
        for taken in ["root", "operator", "video"] {
            assert!(of(&InitArgs { user: Some(taken.into()), ..args() }).contains("another name"), "{taken}");
        }
        assert!(of(&InitArgs { hostname: Some("r-{serail}".into()), ..args() }).contains("serail"));
        let key = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(key.path(), "-----BEGIN OPENSSH PRIVATE KEY-----\n").unwrap();
        assert!(of(&InitArgs { ssh_key: Some(key.path().into()), ..args() }).contains("private key"));
        std::fs::write(key.path(), "root:x:0:0\n").unwrap();
        assert!(of(&InitArgs { ssh_key: Some(key.path().into()), ..args() }).contains("no public ssh key"));
        assert!(of(&InitArgs { ssh_key: Some("/none.pub".into()), ..args() }).contains("ssh-keygen"));
        assert!(of(&InitArgs { suite: Some("bokworm".into()), ..args() }).contains("bookworm"));
    }

    #[test]
    fn a_wrong_answer_is_asked_for_again_and_the_others_stay() {
        let typed =
            std::cell::RefCell::new(vec!["arm", "nuc*", "host:8080", "http://h:8080", "Root", "video", "pilot"]);
        let mut asked = Vec::new();
        let mut ask = |question: &str, default: &str| {
            asked.push(question.chars().take(3).collect::<String>());
            let mut typed = typed.borrow_mut();
            Ok(if typed.is_empty() { default.to_owned() } else { typed.remove(0).to_owned() })
        };
        let answers = Answers::collect(&InitArgs::default(), &Host::default(), &mut ask).unwrap();
        assert_eq!((answers.product.as_str(), answers.user.as_str()), ("arm", "pilot"));
        assert_eq!(answers.urls, ["http://h:8080"]);
        assert_eq!(asked, ["Nam", "Har", "URL", "URL", "Use", "Use", "Use", "Pub"]);
        // Somebody who is no person gives the same answer for ever.
        let mut questions = 0;
        let mut ask = |_: &str, _: &str| {
            questions += 1;
            Ok("a b".to_owned())
        };
        let error = Answers::collect(&InitArgs::default(), &Host::default(), &mut ask).unwrap_err().to_string();
        assert!(error.contains("product \"a b\"") && questions == 5, "{questions}: {error}");
    }

    #[test]
    fn the_keys_of_the_person_who_became_root_are_found() {
        let users = "root:x:0:0:root:/root:/bin/bash\nada:x:1000:1000:Ada,,,:/home/ada:/bin/bash\nbroken\n";
        assert_eq!(home_of(users, "ada").as_deref(), Some(Path::new("/home/ada")));
        assert_eq!((home_of(users, "ad"), home_of(users, "broken")), (None, None));
        let home = tempfile::tempdir().unwrap();
        assert_eq!(public_keys(home.path()), Vec::<PathBuf>::new());
        std::fs::create_dir(home.path().join(".ssh")).unwrap();
        for name in ["id_rsa", "id_rsa.pub", "id_ed25519.pub", "known_hosts"] {
            std::fs::write(home.path().join(".ssh").join(name), "").unwrap();
        }
        let found = public_keys(home.path());
        let names: Vec<_> = found.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["id_ed25519.pub", "id_rsa.pub"]);
    }

    #[test]
    fn a_key_that_is_typed_with_a_tilde_is_found() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".ssh")).unwrap();
        std::fs::write(home.path().join(".ssh/id.pub"), "ssh-ed25519 AAAA me\n").unwrap();
        let host = Host { home: home.path().into(), ..Host::default() };
        let args = InitArgs { product: Some("arm".into()), ..InitArgs::default() };
        let mut ask = |question: &str, default: &str| {
            Ok(if question.starts_with("Public ssh") { "~/.ssh/id.pub".to_owned() } else { default.to_owned() })
        };
        let answers = Answers::collect(&args, &host, &mut ask).unwrap();
        assert_eq!(answers.ssh_key.as_deref(), Some("ssh-ed25519 AAAA me\n"));
    }
}
