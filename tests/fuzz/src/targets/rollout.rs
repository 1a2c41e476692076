//! Roll-outs and halts with anything in them, as a release key or a halt key may have signed them: what is parsed does
//! not contradict itself, and no choice goes beyond what the file says.

use reflash::release::rollout::{Facts, Halts, OwnRelease, Robot, Rollout, choose, identity_text};

use super::manifest::Signer;

pub fn run(data: &[u8]) {
    let Some((&kind, json)) = data.split_first() else { return };
    // A signature costs far more than the first look at most inputs, which are no JSON.
    if serde_json::from_slice::<serde_json::Value>(json).is_err() {
        return;
    }
    let signer = Signer::get();
    let signed = signer.keys.authenticate(json.to_vec(), &signer.sign(json)).unwrap();
    if kind % 4 == 3 {
        let Ok(halts) = Halts::parse(&signed) else { return };
        halts.check().unwrap();
        let again: Halts = serde_json::from_slice(&serde_json::to_vec(&halts).unwrap()).unwrap();
        assert_eq!(again, halts);
        return;
    }
    let Ok(rollout) = Rollout::parse(&signed) else { return };
    rollout.check().unwrap();
    let again: Rollout = serde_json::from_slice(&serde_json::to_vec(&rollout).unwrap()).unwrap();
    assert_eq!(again, rollout);
    for number in 0..8_u64 {
        decide(&rollout, kind, number);
    }
}

fn decide(rollout: &Rollout, kind: u8, number: u64) {
    let serial = format!("SN-{number}");
    let robot = Robot {
        identity: (number > 0).then(|| identity_text(Some(&serial), None, None, [0; 16])).flatten(),
        names: vec![serial],
        ring: (number % 2 == 0).then(|| "lab".to_owned()),
        now_unix_s: (number % 3 > 0).then_some(number << 40),
        facts: match kind % 3 {
            0 => Facts::Unknown,
            1 => Facts::CheckedBefore,
            _ => Facts::Answered(vec![("battery_percent".into(), "81".into()), ("docked".into(), "yes".into())]),
        },
    };
    let own: Vec<OwnRelease> = rollout
        .releases
        .iter()
        .take(usize::from(kind) % 2)
        .map(|release| {
            let digest = release.manifest.blake3.0;
            OwnRelease { serial: release.serial, digest: std::array::from_fn(|at| digest[at]) }
        })
        .collect();
    let begun = rollout.releases.last().map(|release| release.serial);
    let choice = choose(rollout, None, &robot, &own, begun);
    let taken: Vec<u64> = choice.offers.iter().filter(|it| !it.only_own).map(|it| it.release.serial).collect();
    assert!(taken.is_sorted_by(|newer, older| newer > older), "the newest first, and each once: {taken:?}");
    let known = robot.now_unix_s.unwrap_or(rollout.created_unix_s);
    for release in &rollout.releases {
        let is_left_out = choice.left_out.iter().any(|(left, _)| left.serial == release.serial);
        let is_own = own.iter().any(|own| own.serial == release.serial);
        assert!(is_left_out != (taken.contains(&release.serial) || is_own), "{}", release.serial);
        assert!(!(release.is_for_everybody(known) && is_left_out), "{} is for every robot", release.serial);
        assert!(!(release.paused && taken.contains(&release.serial)));
    }
    let _ = choice.why_nothing_above(0);
}
