//! What each of several cards is used for, or why it is not, as the console says it.

use std::time::Duration;

use super::card::Card;
use super::choice::Reach;

/// Time after which a card that has no address yet is reported as not used.
const QUIET: Duration = Duration::from_secs(15);

/// Says why the card in use is used.
pub(super) fn usage_of_chosen(card: &Card, reach: Reach) -> Option<String> {
    let text = card.trial.as_ref().map(|trial| trial.text.as_str());
    match (reach, text) {
        // Another one is about to be.
        _ if card.lost.is_some() => None,
        (Reach::Yes, Some(text)) if card.trial.as_ref().is_some_and(|trial| trial.reach == Reach::Yes) => {
            Some(format!("used: {text}"))
        }
        // No trial says so, and requests are served all the same.
        (Reach::Yes, _) => Some("used: requests through it are answered".to_owned()),
        (Reach::No | Reach::Doubtful, Some(text)) => Some(format!("used in want of a better one: {text}")),
        _ => Some("used: it was the first with an address".to_owned()),
    }
}

/// Says why a card is not used; `None` while it is too early to say.
pub(super) fn usage_of_other(card: &Card, reach: Reach, in_use: &str) -> Option<String> {
    let text = card.trial.as_ref().map(|trial| trial.text.as_str());
    match (reach, text) {
        _ if card.candidate().is_none() && card.since.elapsed() < QUIET => None,
        _ if card.candidate().is_none() => Some("not used: its network has given it no address".to_owned()),
        _ if card.lost.is_some() => Some("not used: its cable is away".to_owned()),
        (Reach::No | Reach::Doubtful, Some(text)) => Some(format!("not used: {text}")),
        (Reach::Yes, _) => Some(format!("not used while {in_use} is; it would do as well")),
        _ => Some(format!("not used while {in_use} is")),
    }
}
