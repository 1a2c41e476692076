//! Questions to a person, each with an answer that Enter takes.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::{Context, Result, bail};

/// Asks one question; gives the answer, or the default.
pub type Questioner<'a> = dyn FnMut(&str, &str) -> Result<String> + 'a;

/// Asks at the terminal. With `--yes` every default is taken; without a terminal there must be nothing to ask.
pub fn terminal(assume_yes: bool) -> impl FnMut(&str, &str) -> Result<String> {
    let person = std::io::stdin().is_terminal();
    move |question, default| {
        if assume_yes {
            return Ok(default.to_owned());
        }
        if !person {
            bail!("there is no terminal to ask at ({question}): give --yes for {default:?}, or the option");
        }
        let shown = if default.is_empty() { String::new() } else { format!(" [{default}]") };
        eprint!("{question}{shown}: ");
        std::io::stderr().flush()?;
        let mut answer = String::new();
        let read = std::io::stdin().lock().read_line(&mut answer).context("read the answer")?;
        if read == 0 {
            bail!("stopped at the question: {question}");
        }
        let answer = answer.trim();
        Ok(if answer.is_empty() { default.to_owned() } else { answer.to_owned() })
    }
}
