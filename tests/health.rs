//! `reflash health wait`, which a boot waits for before it is called good.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::isolated::{isolated, run};

/// One service, of which systemd says nothing at first: it is busy.
const SYSTEMCTL: &str = "#!/bin/sh\necho >> /run/asked\n[ $(wc -l < /run/asked) -gt 1 ] || exit 1\n\
    printf 'Id=app.service\\nType=simple\\nActiveState=active\\nSubState=running\\nResult=success\\nNRestarts=0\\n'\n";
/// A check that fails the first time, and keeps what is recorded of that until the second.
const CHECK: &str = "#!/bin/sh\ncut -d' ' -f1 /proc/uptime >> /run/checked\n\
    [ $(wc -l < /run/checked) -gt 1 ] && exec cp /run/reflash/health.json /run/between.json\n\
    echo the arm is still cold; exit 3\n";

fn put(path: &str, script: &str) {
    fs::write(path, script).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_check_that_fails_is_asked_again_until_it_passes() {
    isolated("health::a_check_that_fails_is_asked_again_until_it_passes", || {
        for place in ["/etc", "/var"] {
            run("mount", &["-t", "tmpfs", "tmpfs", place]);
        }
        fs::create_dir_all("/etc/reflash/health.d").unwrap();
        fs::create_dir_all("/run/reflash").unwrap();
        fs::create_dir_all("/run/state").unwrap();
        put("/run/systemctl", SYSTEMCTL);
        run("mount", &["--bind", "/run/systemctl", "/usr/bin/systemctl"]);
        put("/etc/reflash/health.d/10-arm", CHECK);
        fs::write("/run/reflash/health-terms.json", r#"{"settle_s": 1, "units": ["app"]}"#).unwrap();
        let mut agent = Command::new(env!("CARGO_BIN_EXE_reflash"));
        let output = agent.args(["health", "wait", "--state", "/run/state"]).output().unwrap();
        let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && said.contains("this system is healthy"), "{said}{errors}");
        assert!(errors.contains("not good yet: systemd does not say how its services are"), "{errors}");
        let failed = "not good yet: /etc/reflash/health.d/10-arm ended with 3 (the arm is still cold)";
        assert_eq!(errors.matches(failed).count(), 1, "{errors}");
        let between = fs::read_to_string("/run/between.json").unwrap();
        assert!(between.contains("\"healthy\": false") && between.contains("10-arm"), "{between}");
        let after = fs::read_to_string("/run/reflash/health.json").unwrap();
        assert!(after.contains("\"healthy\": true") && !after.contains("10-arm"), "{after}");
        let checked = fs::read_to_string("/run/checked").unwrap();
        let times: Vec<f64> = checked.lines().map(|line| line.parse().unwrap()).collect();
        assert!(times.len() == 2 && times[1] - times[0] >= 10.0, "it has its pause: {times:?}");
    });
}
