//! The short run: kept inputs, then inputs that are made of them by chance, on any stable compiler and without
//! instrumentation. The same seed gives the same inputs, as far as the time allows.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::targets::{TARGETS, Target, by_name};

/// Largest input that is made.
const MOST_BYTES: usize = 4096;
/// Time after which one input counts as endless. It is generous: machines that test are busy.
const MOST_TIME: Duration = Duration::from_secs(20);

/// What is asked for on the command line.
struct Arguments {
    targets: Vec<Target>,
    /// Time for each share of a target.
    time: Duration,
    seed: u64,
    /// Inputs that are run, instead of all others.
    inputs: Vec<PathBuf>,
}

impl Arguments {
    fn read() -> Result<Self, String> {
        let mut read = Self { targets: Vec::new(), time: Duration::from_secs(5), seed: 1, inputs: Vec::new() };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut number = || {
                let text = arguments.next().ok_or_else(|| format!("{argument} needs a number"))?;
                text.parse::<u64>().map_err(|_| format!("{text:?} is not a number"))
            };
            match argument.as_str() {
                "--seconds" => read.time = Duration::from_secs(number()?),
                "--seed" => read.seed = number()?,
                name => match by_name(name) {
                    Some(target) => read.targets.push(target),
                    None if Path::new(name).is_file() => read.inputs.push(name.into()),
                    None => return Err(format!("{name:?} is neither a target nor a file; the targets: {}", names())),
                },
            }
        }
        if read.targets.is_empty() {
            read.targets = TARGETS.to_vec();
        }
        Ok(read)
    }
}

fn names() -> String {
    TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(", ")
}

/// Runs what the command line says.
pub fn main() -> ExitCode {
    let arguments = match Arguments::read() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let running = Arc::new(Running::default());
    running.watch();
    running.keep_what_panics();
    for target in &arguments.targets {
        running.run(*target, &arguments);
    }
    ExitCode::SUCCESS
}

/// The input that is running, for whatever ends the program.
#[derive(Default)]
struct Running {
    input: Mutex<(&'static str, Vec<u8>)>,
    number: AtomicU64,
}

impl Running {
    fn run(&self, target: Target, arguments: &Arguments) {
        let began = Instant::now();
        let kept = if arguments.inputs.is_empty() { kept_inputs(target.name) } else { arguments.inputs.clone() };
        let corpus: Vec<Vec<u8>> = kept.iter().map(|path| std::fs::read(path).expect("an input can be read")).collect();
        corpus.iter().for_each(|input| self.feed(target, input));
        let mut count = corpus.len();
        let mut chance = Chance(arguments.seed);
        while arguments.inputs.is_empty() && began.elapsed() < arguments.time * target.share {
            self.feed(target, &chance.input(&corpus));
            count += 1;
        }
        eprintln!("{:14} {count:8} inputs, {} of them kept", target.name, corpus.len());
    }

    fn feed(&self, target: Target, input: &[u8]) {
        *self.input.lock().unwrap() = (target.name, input.to_vec());
        self.number.fetch_add(1, Ordering::Relaxed);
        (target.run)(input);
    }

    /// Writes the input to a file, so that it can be looked into.
    fn keep(&self, why: &str) {
        let (name, input) = self.input.lock().map(|input| input.clone()).unwrap_or_default();
        let path = std::env::temp_dir().join(format!("reflash-fuzz-{name}-{}", std::process::id()));
        let _ = std::fs::write(&path, &input);
        eprintln!("{name}: {why}; the input of {} bytes is {}", input.len(), path.display());
    }

    fn keep_what_panics(self: &Arc<Self>) {
        let this = Arc::clone(self);
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            report(panic);
            this.keep("it panicked");
            // Other threads of the target may wait for the one that panicked.
            std::process::exit(1);
        }));
    }

    /// Ends the program when one input takes too long.
    fn watch(self: &Arc<Self>) {
        let this = Arc::clone(self);
        std::thread::spawn(move || {
            let (mut seen, mut since) = (0, Instant::now());
            loop {
                std::thread::sleep(Duration::from_millis(500));
                let number = this.number.load(Ordering::Relaxed);
                if number != seen {
                    (seen, since) = (number, Instant::now());
                } else if number > 0 && since.elapsed() > MOST_TIME {
                    this.keep("it took too long");
                    std::process::exit(1);
                }
            }
        });
    }
}

/// The inputs of a target, in an order that is the same everywhere.
fn kept_inputs(target: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directories = ["regressions", "seeds"].map(|kind| root.join(kind).join(target));
    let entries = directories.iter().filter_map(|directory| std::fs::read_dir(directory).ok()).flatten();
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// A small generator of numbers, and of inputs.
struct Chance(u64);

impl Chance {
    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) ^ (self.0 >> 11)
    }

    fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.number() % end as u64) as usize }
    }

    fn byte(&mut self) -> u8 {
        match self.number() % 4 {
            0 => [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
            _ => self.number() as u8,
        }
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most + 1)).map(|_| self.byte()).collect()
    }

    /// Makes an input: of nothing, or of one or two kept ones.
    fn input(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        if corpus.is_empty() || self.below(16) == 0 {
            return self.bytes(MOST_BYTES / 4);
        }
        let mut input = corpus[self.below(corpus.len())].clone();
        for _ in 0..=self.below(5) {
            let other = &corpus[self.below(corpus.len())];
            self.change(&mut input, other);
        }
        input.truncate(MOST_BYTES.max(corpus.iter().map(Vec::len).max().unwrap_or(0)));
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        let at = self.below(input.len() + 1);
        let end = at + self.below((input.len() - at + 1).min(64));
        match self.below(8) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = self.byte(),
            2 => drop(input.drain(at..end)),
            3 => drop(input.splice(at..at, self.bytes(16))),
            // A number in place of another.
            4 => {
                let number = [0, 1, u64::MAX, 1 << 31, 1 << 32, 1 << 63, self.number()][self.below(7)];
                let bytes = if self.below(2) == 0 { number.to_le_bytes() } else { number.to_be_bytes() };
                let end = (at + [1, 2, 4, 8][self.below(4)]).min(input.len());
                let len = end - at;
                input[at..end].copy_from_slice(&bytes[..len]);
            }
            5 => {
                let copy = input[at..end].to_vec();
                let to = self.below(input.len() + 1);
                drop(input.splice(to..to, copy));
            }
            6 => {
                let from = self.below(other.len() + 1);
                let len = self.below((other.len() - from + 1).min(256));
                drop(input.splice(at..end, other[from..from + len].to_vec()));
            }
            _ => {
                input.truncate(at);
                input.extend_from_slice(&other[self.below(other.len() + 1)..]);
            }
        }
    }
}
