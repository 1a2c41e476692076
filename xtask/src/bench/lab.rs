//! Laboratory in which runs happen: nginx on loopback, and a clock around a command.

use std::fs::{self, File};
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use walkdir::WalkDir;

/// Cost of one run.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Cost {
    pub wall_s: f64,
    /// User and system time of the command and all its children.
    pub cpu_s: f64,
    /// Peak memory of the largest process, MiB.
    pub peak_rss_mib: f64,
    /// Bodies and headers that were downloaded, as nginx counted them, in MB of 10^6 bytes.
    pub download_mb: f64,
    pub requests: u64,
}

/// Server: nginx over one directory, with an access log of its own.
pub struct Nginx {
    process: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Nginx {
    /// Serves `root`; `work` takes configuration and logs.
    pub fn start(root: &Path, work: &Path) -> Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0").context("find a free port")?.local_addr()?;
        let log = work.join("access.log");
        let place = work.display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|kind| format!("{kind}_temp_path {place}/nginx-{kind};\n"))
            .collect();
        let config = format!(
            "user root;\nworker_processes auto;\npid {place}/nginx.pid;\nevents {{}}\nhttp {{\n{temporary}\
             log_format bench '$bytes_sent';\naccess_log {} bench;\nsendfile on;\ntcp_nopush on;\n\
             keepalive_requests 100000;\nserver {{ listen {address}; root {}; }}\n}}\n",
            log.display(),
            root.display()
        );
        let path = work.join("nginx.conf");
        fs::write(&path, config).with_context(|| format!("write {}", path.display()))?;
        let mut command = Command::new("nginx");
        command.args(["-e", "stderr", "-g", "daemon off;", "-c"]).arg(&path);
        let process = command.stdin(Stdio::null()).spawn().context("start nginx")?;
        let mut server = Self { process, address, log };
        let until = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(address).is_err() {
            if let Some(status) = server.process.try_wait()? {
                bail!("nginx ended with {status}");
            }
            ensure!(Instant::now() < until, "nginx does not listen on {address} after 10 s");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Base URL, without a slash at its end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn forget(&self) -> Result<()> {
        // The log is truncated in place, because nginx has it open for appending.
        File::options().write(true).open(&self.log)?.set_len(0).context("shorten the access log")
    }

    /// Counts bytes and requests since [`forget`](Self::forget).
    fn served(&self) -> Result<(u64, u64)> {
        // nginx logs a request when its answer is over, a moment after the client has all of it.
        std::thread::sleep(Duration::from_millis(100));
        Ok(sum(&fs::read_to_string(&self.log).context("read the access log")?))
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // nginx ends its workers itself.
        let _ = Command::new("kill").arg(self.process.id().to_string()).status();
        let _ = self.process.wait();
    }
}

/// Returns the bytes and requests of an access log.
fn sum(log: &str) -> (u64, u64) {
    let bytes = log.lines().filter_map(|line| line.trim().parse::<u64>().ok());
    bytes.fold((0, 0), |(total, requests), bytes| (total + bytes, requests + 1))
}

/// Reads files and directories to their end, so that every tool finds the served files in the host's page cache.
pub fn warm(paths: impl IntoIterator<Item = PathBuf>) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    for path in paths {
        for entry in WalkDir::new(&path) {
            let entry = entry.with_context(|| format!("read {}", path.display()))?;
            if entry.file_type().is_file() {
                let mut file = File::open(entry.path())?;
                while file.read(&mut buffer)? > 0 {}
            }
        }
    }
    Ok(())
}

/// Seconds after which a tool counts as hung: thirty times the longest run ever seen.
const LONGEST_RUN_S: &str = "1800";

/// Runs a shell command under GNU time. The result is `None` when the command fails; the output is in `log`.
pub fn timed(command: &str, path: &str, server: &Nginx, work: &Path, log: &Path) -> Result<Option<Cost>> {
    server.forget()?;
    let times = work.join("time");
    let output = File::create(log).with_context(|| format!("create {}", log.display()))?;
    let mut timed = Command::new("time");
    timed.args(["--format", "%e %U %S %M", "--output"]).arg(&times);
    timed.args(["timeout", LONGEST_RUN_S, "sh", "-ec", command]).env("PATH", path);
    let status =
        timed.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).status().context("start time")?;
    if !status.success() {
        return Ok(None);
    }
    let (bytes, requests) = server.served()?;
    let text = fs::read_to_string(&times)?;
    let [wall_s, user_s, system_s, rss_kib] = times_of(&text).with_context(|| format!("read {text:?} of time"))?;
    Ok(Some(Cost {
        wall_s,
        cpu_s: user_s + system_s,
        peak_rss_mib: rss_kib / 1024.0,
        download_mb: bytes as f64 / 1e6,
        requests,
    }))
}

/// Parses the last line that `time` wrote.
fn times_of(text: &str) -> Option<[f64; 4]> {
    let numbers: Vec<f64> = text.lines().last()?.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    numbers.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::{sum, times_of};

    #[test]
    fn logs_are_summed_and_times_read() {
        assert_eq!(sum("100\n23\n\n7\n"), (130, 3));
        assert_eq!(sum(""), (0, 0));
        assert_eq!(times_of("Command had a warning\n1.50 2.25 0.50 20480\n"), Some([1.5, 2.25, 0.5, 20480.0]));
        assert_eq!(times_of("Command exited\n"), None);
    }
}
