use super::{
    Exclusion, FORMAT, FactCondition, Facts, Halt, Halts, OwnRelease, Robot, RobotGroup, Rollout, RolloutChoice,
    RolloutError, StagedRelease, Stopped, choose, identity_text, place,
};
use crate::release::digest::Digest;
use crate::release::manifest::{Object, TrustedKeys};

const SIGNED: u64 = 1_800_000_000;

fn staged(serial: u64, who: Vec<RobotGroup>) -> StagedRelease {
    let manifest = Object { blake3: Digest::of(format!("release {serial}").as_bytes()), size_bytes: 100 };
    StagedRelease::new(serial, format!("1.{serial}"), manifest, who)
}

fn share(percent: u32) -> RobotGroup {
    RobotGroup { share_ppm: percent * 10_000, ..RobotGroup::default() }
}

fn rollout(releases: Vec<StagedRelease>) -> Rollout {
    let (product, channel) = ("demo".to_owned(), "stable".to_owned());
    Rollout { format: FORMAT, product, channel, counter: 1, created_unix_s: SIGNED, halt_key: None, releases }
}

fn halts(of: &[&StagedRelease], counter: u64) -> Halts {
    let halt =
        |it: &&StagedRelease| Halt { serial: it.serial, manifest: it.manifest.blake3, counter, why: "wheels".into() };
    Halts {
        format: FORMAT,
        product: "demo".into(),
        channel: "stable".into(),
        counter,
        created_unix_s: SIGNED,
        halted: of.iter().map(halt).collect(),
    }
}

fn robot(number: u32) -> Robot {
    let serial = format!("SN-{number:04}");
    let identity = identity_text(Some(&serial), None, None, [0; 16]);
    Robot { identity, names: vec![serial], ..Robot::default() }
}

fn own(release: &StagedRelease) -> OwnRelease {
    let digest = release.manifest.blake3.0;
    OwnRelease { serial: release.serial, digest: std::array::from_fn(|at| digest[at]) }
}

fn serials(choice: &RolloutChoice<'_>) -> Vec<u64> {
    choice.offers.iter().map(|offer| offer.release.serial).collect()
}

fn taken(rollout: &Rollout, robot: &Robot) -> Vec<u64> {
    serials(&choose(rollout, None, robot, &[], None))
}

#[test]
fn a_place_is_what_the_document_says() {
    // What another implementation has to come to.
    let release = Digest::of(b"release 8");
    assert_eq!(release.to_string(), "d67ac7cb38909c9074e7cb87a6d7c12f10a74bfc317c9b0bc5424889a79fb925");
    let found = place(&release, "serial SN-0001 uuid 4c4c4544-0042-3510-8048-b4c04f4d3732");
    assert_eq!((found.0, found.to_string().as_str()), (5_572_589_749_698_825_768, "30.209 %"));
    assert_eq!(
        format!("{} {} {}", super::RobotPlace(0), super::RobotPlace(1 << 63), super::RobotPlace(u64::MAX)),
        "0 % 50 % 99.9999 %"
    );
}

/// The fleet of the acceptance: the code that decides on a robot, and no model of it.
#[test]
fn a_thousand_robots_over_two_hundred_releases_get_the_share_and_no_other_ring() {
    const ROBOTS: u32 = 1000;
    const RELEASES: u64 = 200;
    let fleet: Vec<Robot> = (0..ROBOTS)
        .map(|number| Robot { ring: (number % 10 == 0).then(|| "lab".to_owned()), ..robot(number) })
        .collect();
    let mut firsts = vec![0_u32; fleet.len()];
    for percent in [5, 25] {
        let p = f64::from(percent) / 100.0;
        let deviation = (p * (1.0 - p) * f64::from(ROBOTS)).sqrt();
        let (mut all, mut beyond) = (0_u32, Vec::new());
        for serial in 2..2 + RELEASES {
            let base = staged(1, vec![share(100)]);
            let in_share = |percent: u32| rollout(vec![base.clone(), staged(serial, vec![share(percent)])]);
            let (narrow, wide) = (in_share(percent), in_share(percent + 10));
            let mut inside = 0;
            for (number, robot) in fleet.iter().enumerate() {
                let takes = taken(&narrow, robot);
                assert_eq!(takes.last(), Some(&1), "the release before is there for all");
                let is_in = takes.first() == Some(&serial);
                inside += u32::from(is_in);
                if is_in {
                    assert_eq!(taken(&wide, robot).first(), Some(&serial), "widening drops no robot");
                }
                firsts[number] += u32::from(is_in && percent == 5);
            }
            all += inside;
            let off = (f64::from(inside) - p * f64::from(ROBOTS)).abs() / deviation;
            if off > 3.0 {
                beyond.push((serial, inside, off));
            }
        }
        let mean = f64::from(all) / f64::from(ROBOTS) / 200.0 * 100.0;
        eprintln!("{percent} %: mean {mean:.3} %, beyond three standard deviations: {beyond:?}");
        assert!((mean - f64::from(percent)).abs() < 0.5, "{percent}: {mean}");
        assert!(beyond.is_empty(), "{percent}: {beyond:?}");
    }
    // No robot is always among the first, and none never: 200 releases at 5 % are 10 each.
    let (least, most) = (firsts.iter().min().unwrap(), firsts.iter().max().unwrap());
    assert!(*least >= 1 && *most <= 25, "{least} to {most}");
    for serial in 2..22 {
        let lab = RobotGroup { rings: vec!["lab".into()], share_ppm: 500_000, ..RobotGroup::default() };
        let staged = rollout(vec![staged(1, vec![share(100)]), staged(serial, vec![lab])]);
        let takers = fleet.iter().filter(|robot| taken(&staged, robot)[0] == serial);
        assert!(takers.clone().all(|robot| robot.ring.is_some()) && takers.count() > 20);
    }
}

#[test]
fn who_is_in_and_why_the_others_are_not() {
    let base = staged(7, vec![share(100)]);
    let with = |who: Vec<RobotGroup>| rollout(vec![base.clone(), staged(8, who)]);
    let group = |serials: &[&str], rings: &[&str], percent: u32| RobotGroup {
        serials: serials.iter().map(|it| (*it).to_owned()).collect(),
        rings: rings.iter().map(|it| (*it).to_owned()).collect(),
        ..share(percent)
    };
    let lab = |number: u32| Robot { ring: Some("lab".into()), ..robot(number) };
    let nameless = Robot::default();
    for (who, robot, expected) in [
        (vec![], robot(1), "named robots"),
        (vec![share(0)], robot(1), "named robots"),
        (vec![share(100)], robot(1), ""),
        (vec![share(100)], nameless.clone(), ""),
        (vec![share(99)], nameless.clone(), "no serial number"),
        (vec![group(&["SN-0001"], &[], 100)], robot(1), ""),
        (vec![group(&["sn-*1"], &[], 100)], robot(1), ""),
        (vec![group(&["SN-00*"], &[], 100)], robot(1), ""),
        (vec![group(&["*"], &[], 100)], robot(1), ""),
        (vec![group(&["*N*0*1"], &[], 100)], robot(1), ""),
        (vec![group(&["SN-0002", "SN-000"], &[], 100)], robot(1), "named robots"),
        (vec![group(&["*SN"], &[], 100)], robot(1), "named robots"),
        (vec![group(&[], &["lab"], 100)], lab(1), ""),
        (vec![group(&[], &["lab"], 100)], robot(1), "named robots"),
        (vec![group(&["SN-0002"], &["lab"], 100)], lab(1), "named robots"),
        (vec![group(&["SN-0001"], &["lab"], 100)], lab(1), ""),
        (vec![share(0), group(&["SN-0001"], &[], 100)], robot(1), ""),
        (vec![group(&[], &["lab"], 0)], lab(1), "named robots"),
    ] {
        let rollout = with(who);
        let choice = choose(&rollout, None, &robot, &[], None);
        assert_eq!(choice.offers.last().unwrap().release.serial, 7);
        match choice.why_nothing_above(7) {
            None => assert!(expected.is_empty() && serials(&choice) == [8, 7], "{rollout:?}"),
            Some(why) => assert!(!expected.is_empty() && why.contains(expected), "{expected}: {why}"),
        }
    }
    let rollout = with(vec![share(5)]);
    let outside = (0..99).map(robot).find(|robot| taken(&rollout, robot) == [7]).unwrap();
    let why = choose(&rollout, None, &outside, &[], None).why_nothing_above(7).unwrap();
    assert!(why.starts_with("release 1.8 (serial 8): it is not for this robot yet, whose place is "), "{why}");
    assert!(why.ends_with(" %: the share is 5 %"), "{why}");
}

#[test]
fn a_clock_that_is_not_known_begins_nothing_that_has_a_time() {
    let timed = |from: Option<u64>, to: Option<u64>| {
        let release = StagedRelease { not_before_unix_s: from, not_after_unix_s: to, ..staged(8, vec![share(100)]) };
        rollout(vec![staged(7, vec![share(100)]), release])
    };
    let at = |now: Option<u64>, facts: &Facts| Robot { now_unix_s: now, facts: facts.clone(), ..robot(1) };
    let (early, late) = (SIGNED - 50, SIGNED + 50);
    let (unknown, checked) = (Facts::Unknown, Facts::CheckedBefore);
    for (from, to, now, facts, is_in) in [
        (Some(late), None, Some(late - 1), &unknown, false),
        (Some(late), None, Some(late), &unknown, true),
        (Some(late), None, None, &unknown, false),
        // What the running system checked just before is not undone by a clock without a battery.
        (Some(late), None, None, &checked, true),
        (Some(late), None, Some(late - 1), &checked, false),
        // The file was signed after it: that time has come.
        (Some(early), None, None, &unknown, true),
        // A clock that is known counts alone: the file may have been signed by one that is wrong.
        (Some(early), None, Some(early - 1), &unknown, false),
        (None, Some(late), Some(late), &unknown, true),
        (None, Some(late), Some(late + 1), &unknown, false),
        (None, Some(late), None, &unknown, false),
        (None, Some(late), None, &checked, true),
        (None, Some(early), None, &checked, false),
        (None, Some(early), Some(early - 9), &unknown, true),
        (Some(early), Some(late), Some(SIGNED), &unknown, true),
    ] {
        let found = taken(&timed(from, to), &at(now, facts));
        assert_eq!(found[0] == 8, is_in, "{from:?} {to:?} {now:?} {facts:?}");
    }
}

#[test]
fn a_fact_has_to_be_known_and_right() {
    let with = |name: &str, at_least: Option<i64>, is: Option<&str>| {
        let fact = FactCondition { name: name.into(), at_least, is: is.map(Into::into) };
        rollout(vec![staged(7, vec![share(100)]), StagedRelease { facts: vec![fact], ..staged(8, vec![share(100)]) }])
    };
    let answered = |name: &str, value: &str| Facts::Answered(vec![(name.into(), value.into())]);
    let battery = with("battery_percent", Some(50), None);
    for (rollout, facts, expected) in [
        (&battery, answered("battery_percent", "50"), ""),
        (&battery, answered("battery_percent", "81.5"), ""),
        (&battery, Facts::CheckedBefore, ""),
        (&battery, answered("battery_percent", "49.9"), "battery_percent is \"49.9\", and 50 or more is needed"),
        (&battery, answered("battery_percent", "full"), "50 or more"),
        (&battery, answered("battery", "90"), "does not say battery_percent"),
        (&battery, Facts::Answered(Vec::new()), "does not say battery_percent"),
        (&battery, Facts::Unknown, "only the running system"),
        (&with("docked", None, Some("yes")), answered("docked", "yes"), ""),
        (&with("docked", None, Some("yes")), answered("docked", "no"), "has to be \"yes\""),
    ] {
        let robot = Robot { facts, ..robot(1) };
        // Power was cut while it was written: it is finished.
        assert_eq!(serials(&choose(rollout, None, &robot, &[], Some(8))), [8, 7]);
        let why = choose(rollout, None, &robot, &[], None).why_nothing_above(7).unwrap_or_default();
        assert!(why.contains(expected) && why.is_empty() == expected.is_empty(), "{expected}: {why}");
    }
}

/// What a stop means for each robot: it begins nowhere, and takes nothing back.
#[test]
fn what_a_halt_and_a_pause_mean_for_every_robot() {
    let (base, new) = (staged(7, vec![share(100)]), staged(8, vec![share(100)]));
    let paused = rollout(vec![base.clone(), StagedRelease { paused: true, ..new.clone() }]);
    let open = rollout(vec![base.clone(), new.clone()]);
    let halted = halts(&[&new], 3);
    for (rollout, halts) in [(&open, Some(&halted)), (&paused, None)] {
        let choice = |own: &[OwnRelease], begun| choose(rollout, halts, &robot(1), own, begun);
        // Outside with the release before, and never provisioned.
        assert_eq!(serials(&choice(&[own(&base)], None)), [7]);
        assert_eq!(serials(&choice(&[], None)), [7]);
        // It has the release: it may be repaired.
        let has = choice(&[own(&new)], None);
        assert_eq!((serials(&has), has.offers[0].only_own), (vec![8, 7], true));
        // Another manifest of the same serial is another release.
        let other = OwnRelease { digest: [0; 8], ..own(&new) };
        assert_eq!(serials(&choice(&[other], None)), [7]);
        // Cut in the middle: back to what is installed; finished only by a robot that has nothing.
        assert_eq!(serials(&choice(&[own(&base)], Some(8))), [7]);
        assert_eq!(serials(&choice(&[], Some(8))), [7, 8]);
    }
    let choice = choose(&open, Some(&halted), &robot(1), &[own(&base)], None);
    assert_eq!(choice.left_out[0].1, Exclusion::Stopped(Stopped::Halted, "wheels".into()));
    assert_eq!(choice.why_nothing_above(7).unwrap(), "release 1.8 (serial 8): its roll-out is halted (wheels)");
    assert_eq!(choice.why_nothing_above(8), None);
    // Only a release key lifts a halt, and a later one counts again.
    let lifted = rollout(vec![base, StagedRelease { halts_lifted_through: 3, ..new.clone() }]);
    assert_eq!(serials(&choose(&lifted, Some(&halted), &robot(1), &[], None)), [8, 7]);
    assert_eq!(serials(&choose(&lifted, Some(&halts(&[&new], 4)), &robot(1), &[], None)), [7]);
}

#[test]
fn a_time_that_has_come_binds_no_robot() {
    let from = |from| StagedRelease { not_before_unix_s: Some(from), ..staged(8, vec![share(100)]) };
    assert!(from(SIGNED).is_for_everybody(SIGNED) && !from(SIGNED + 1).is_for_everybody(SIGNED));
    assert!(!StagedRelease { not_after_unix_s: Some(SIGNED + 9), ..from(1) }.is_for_everybody(SIGNED));
}

#[test]
fn a_condition_of_a_later_version_keeps_only_its_release_away() {
    let newer = StagedRelease { requires: vec!["moon-phase".into()], ..staged(8, vec![share(100)]) };
    let rollout = rollout(vec![staged(7, vec![share(100)]), newer]);
    let choice = choose(&rollout, None, &robot(1), &[], None);
    let why = choice.why_nothing_above(7).unwrap();
    assert!(serials(&choice) == [7] && why.contains("\"moon-phase\"") && why.contains("newer recovery"), "{why}");
}

#[test]
fn files_that_contradict_themselves_are_refused_by_name() {
    let good = || rollout(vec![staged(7, vec![share(100)]), staged(8, vec![share(5)])]);
    good().check().unwrap();
    type Change = fn(&mut Rollout);
    let cases: [(Change, &str); 18] = [
        (|it| it.counter = 0, "number is 0"),
        (|it| it.counter = 1 << 53, "9007199254740992"),
        (|it| it.releases.clear(), "no release"),
        (|it| it.releases[1].serial = 7, "serial 7 twice"),
        (|it| it.releases[1].manifest = it.releases[0].manifest, "same manifest"),
        (|it| it.releases[1].who[0].share_ppm = 1_000_001, "more than all robots"),
        (|it| it.releases[1].who[0].serials = vec![String::new()], "is empty"),
        (|it| it.releases[1].who = vec![RobotGroup::default(); 65], "65 groups"),
        (|it| (0..40).for_each(|n| it.releases.push(staged(100 + n, vec![]))), "42 releases"),
        (
            |it| (it.releases[1].not_before_unix_s, it.releases[1].not_after_unix_s) = (Some(9), Some(8)),
            "ends at 8 s, before it begins at 9 s",
        ),
        (
            |it| it.releases[1].facts = vec![FactCondition { name: "a".into(), at_least: None, is: None }],
            "either at_least or is",
        ),
        (
            |it| {
                it.releases[1].facts = vec![FactCondition { name: "a".into(), at_least: Some(1), is: Some("b".into()) }]
            },
            "either at_least or is",
        ),
        (|it| it.releases[1].serial = u64::MAX, "above"),
        (|it| it.releases[1].halts_lifted_through = 1 << 60, "lifted through number 1152921504606846976"),
        (|it| it.releases[1].version = "\u{1b}[2J".into(), "the version has control characters"),
        (|it| it.releases[1].who[0].rings = vec!["a\nb".into()], "a pattern or ring has control characters"),
        (|it| it.releases[1].who[0].serials = vec!["\r".into()], "a pattern or ring has control characters"),
        (
            |it| it.releases[1].facts = vec![FactCondition { name: "\t".into(), at_least: Some(1), is: None }],
            "the name of a fact has control characters",
        ),
    ];
    for (change, expected) in cases {
        let mut wrong = good();
        change(&mut wrong);
        let text = wrong.check().unwrap_err();
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let of_another = halts(&[&staged(9, vec![])], 1);
    assert!(matches!(of_another.check_against(&good()), Err(RolloutError::HaltOfAnother { serial: 9 })));
    let mut other_manifest = halts(&[&staged(8, vec![])], 1);
    other_manifest.halted[0].manifest = Digest::of(b"other");
    assert!(other_manifest.check_against(&good()).is_err());
    halts(&[&staged(8, vec![])], 1).check_against(&good()).unwrap();
    let mut later = halts(&[&staged(8, vec![])], 3);
    later.halted[0].counter = 4;
    assert!(later.check().unwrap_err().contains("number 4"));
    type ChangeHalts = fn(&mut Halts);
    let cases: [(ChangeHalts, &str); 4] = [
        // No number is below it, so that nothing would tell whether it is lifted.
        (|it| it.halted[0].counter = 0, "has number 0"),
        (|it| it.halted[0].why = "a\nb".into(), "a reason has control characters"),
        (|it| it.halted[0].why = "x".repeat(201), "more than 200 characters"),
        (|it| it.counter = 0, "number is 0"),
    ];
    for (change, expected) in cases {
        let mut wrong = halts(&[&staged(8, vec![])], 3);
        change(&mut wrong);
        let text = wrong.check().unwrap_err();
        assert!(text.contains(expected), "{expected}: {text}");
    }
    // What is lifted ahead would never stop again.
    let mut ahead = good();
    ahead.releases[1].halts_lifted_through = 4;
    let error = halts(&[&staged(8, vec![])], 3).check_against(&ahead).unwrap_err();
    assert!(matches!(error, RolloutError::LiftedAhead { serial: 8, through: 4, halts: 3 }), "{error}");
    halts(&[&staged(8, vec![])], 4).check_against(&ahead).unwrap();
}

#[test]
fn only_signed_bytes_are_parsed_and_additions_are_passed_over() {
    // A key and a signature over b"test" from minisign-verify's documentation.
    let mut keys = TrustedKeys::default();
    keys.add("k", "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3").unwrap();
    let json = |text: &str| super::parse::<Rollout>("roll-out", text.as_bytes());
    let text = serde_json::to_string(&rollout(vec![staged(7, vec![share(100)])])).unwrap();
    assert_eq!(json(&text).unwrap().releases[0].serial, 7);
    let more = text.replacen("{\"format\":1", "{\"later\":[1],\"format\":1", 1);
    assert_eq!(json(&more).unwrap(), json(&text).unwrap());
    let later = text.replacen("\"format\":1", "\"format\":2", 1);
    assert!(matches!(json(&later), Err(RolloutError::Format { found: 2, .. })));
    for wrong in ["", "{}", "[]", "{\"format\":1}", &text.replacen("\"counter\":1", "\"counter\":-1", 1)] {
        assert!(matches!(json(wrong), Err(RolloutError::Json { .. })), "{wrong}");
    }
    // What is not set is not written, so that a group of all robots is short.
    assert!(text.contains("\"who\":[{\"share_ppm\":1000000}]") && !text.contains("paused"), "{text}");
    let group: RobotGroup = serde_json::from_str("{\"serials\":[\"A*\"]}").unwrap();
    assert_eq!(group.share_ppm, 1_000_000);
    // What a slip of the pen leaves of a group is not the whole fleet.
    for empty in ["{}", "{\"ring\":[\"lab\"]}", "{\"facts\":[]}", "{\"serials\":[]}", "{\"share_ppm\":null}"] {
        let error = serde_json::from_str::<RobotGroup>(empty).unwrap_err().to_string();
        assert!(error.contains("for nobody"), "{empty}: {error}");
    }
    assert_eq!(
        serde_json::from_str::<RobotGroup>("{\"share_ppm\":5}").unwrap(),
        RobotGroup { share_ppm: 5, ..RobotGroup::default() }
    );
    assert!(super::halt_keys(&keys, &Rollout { halt_key: Some("no key".into()), ..json(&text).unwrap() }).is_err());
}
