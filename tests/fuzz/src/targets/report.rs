//! Reports: what a black box holds becomes a post that can be read, whatever was recorded, and any post can be taken.

use reflash::record::blackbox::Attempt;
use reflash::record::wire::{Post, ReportedMachine, attempts_post};

pub fn run(data: &[u8]) {
    let _ = serde_json::from_slice::<Post>(data);
    let Ok(attempt) = serde_json::from_slice::<Attempt>(data) else { return };
    let machine = ReportedMachine { product: attempt.agent.clone(), ..ReportedMachine::default() };
    let text = attempts_post(&machine, &[attempt]).unwrap();
    assert!(!text.contains('\n'), "one line");
    let post: Post = serde_json::from_str(&text).unwrap();
    assert_eq!((post.machine, post.attempts.len()), (machine, 1));
}
