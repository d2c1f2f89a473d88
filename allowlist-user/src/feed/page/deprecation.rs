//! What a text says about the end of the addresses beside it.
//!
//! "Will be deprecated on 5 April 2020" leaves them in force up to and on that day; "was deprecated",
//! "deprecated" and "no longer used" do not; "is not deprecated" says nothing. Reads words, and English
//! ones only. Knows no pages.

use jiff::civil::Date;

/// Words that say it on their own.
const ENDED: [&str; 6] = [
    "deprecated",
    "retired",
    "decommissioned",
    "discontinued",
    "obsolete",
    "sunsetted",
];
/// Words that say it with an auxiliary verb before them.
const ENDED_WITH_VERB: [&str; 7] = [
    "removed",
    "withdrawn",
    "disabled",
    "deleted",
    "sunset",
    "phased",
    "shut",
];
/// What may follow "no longer".
const USED: [&str; 9] = [
    "used",
    "in",
    "be",
    "valid",
    "active",
    "supported",
    "needed",
    "required",
    "available",
];
/// Words between an auxiliary verb and its verb.
const REACH: usize = 5;
/// Words between a verb and its date.
const DATE_REACH: usize = 8;
const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];

/// From best to worst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Fate {
    /// Nothing is said.
    #[default]
    Stays,
    /// They will go, and nobody can tell when.
    Sometime,
    /// They are good up to and on this day.
    Until(Date),
    /// They have gone.
    Gone,
}

impl Fate {
    /// The worse of both, which for two days is the earlier.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Gone, _) | (_, Self::Gone) => Self::Gone,
            (Self::Until(one), Self::Until(other)) => Self::Until(one.min(other)),
            (Self::Until(day), _) | (_, Self::Until(day)) => Self::Until(day),
            (Self::Sometime, _) | (_, Self::Sometime) => Self::Sometime,
            (Self::Stays, Self::Stays) => Self::Stays,
        }
    }
}

/// What a row, list item, paragraph or label says.
pub(super) fn fate(text: &str) -> Fate {
    let words = words(text);
    (0..words.len())
        .map(|at| fate_at(&words, at))
        .fold(Fate::Stays, Fate::and)
}

/// When the verb before a past participle puts it.
enum Tense {
    Never,
    Future,
    Past,
    /// No verb, or "is".
    Bare,
}

fn fate_at(words: &[String], at: usize) -> Fate {
    let word = words[at].as_str();
    let next = || words.get(at + 1).map_or("", String::as_str);
    let (verb, is_weak) = if ENDED.contains(&word) {
        (at, false)
    } else if ENDED_WITH_VERB.contains(&word) {
        (at, true)
    } else if word == "no" && next() == "longer" {
        let follows = words.get(at + 2).map_or("", String::as_str);
        if !USED.contains(&follows) {
            return Fate::Stays;
        }
        (at, false)
    } else {
        return Fate::Stays;
    };
    let tense = tense(&words[..verb], is_weak);
    let after = dates(words, verb + 1, verb + 1 + DATE_REACH);
    let before = || dates(words, verb.saturating_sub(DATE_REACH + REACH), verb);
    match tense {
        Some(Tense::Future) => {
            let date = after.first().copied().or_else(|| before().last().copied());
            date.map_or(Fate::Sometime, Fate::Until)
        }
        Some(Tense::Past) => Fate::Gone,
        Some(Tense::Bare) => after.first().copied().map_or(Fate::Gone, Fate::Until),
        Some(Tense::Never) | None => Fate::Stays,
    }
}

/// By the nearest auxiliary verb before; a weak word says nothing without one.
fn tense(before: &[String], is_weak: bool) -> Option<Tense> {
    let near = before.iter().rev().take(REACH).map(String::as_str);
    let mut has_been = false;
    for word in near.take_while(|word| *word != "|") {
        match word {
            "not" | "never" | "t" => return Some(Tense::Never),
            "will" | "shall" | "to" | "ll" => return Some(Tense::Future),
            "was" | "were" | "has" | "have" | "had" => return Some(Tense::Past),
            "is" | "are" => return Some(Tense::Bare),
            "been" => has_been = true,
            _ => {}
        }
    }
    match (has_been, is_weak) {
        (true, _) => Some(Tense::Past),
        (false, true) => None,
        (false, false) => Some(Tense::Bare),
    }
}

/// The dates that start between two words, in their order.
fn dates(words: &[String], from: usize, to: usize) -> Vec<Date> {
    let mut dates = Vec::new();
    let mut at = from;
    while at < to.min(words.len()) {
        let date = date(&words[at..]);
        dates.extend(date);
        // "5 April 2020" is not "April 2020" too, and neither is "31 April 2020".
        let is_day = number(&words[at]).is_some();
        at += if date.is_some() || is_day { 2 } else { 1 };
    }
    dates
}

/// "5 April 2020", "5th of April 2020", "April 5 2020", "2020-04-05"; and "April 2020", which is good up to
/// its end. Not "4/5/2020", which is another day on each side of an ocean.
fn date(words: &[String]) -> Option<Date> {
    let first = words.first()?;
    let rest: Vec<&str> = words[1..]
        .iter()
        .map(String::as_str)
        .filter(|word| *word != "of")
        .take(2)
        .collect();
    if let Some(month) = month(first) {
        return match rest[..] {
            [day, year] if number(day).is_some() && self::year(year).is_some() => {
                Date::new(self::year(year)?, month, number(day)?).ok()
            }
            [year, ..] => {
                let first = Date::new(self::year(year)?, month, 1).ok()?;
                Some(first.last_of_month())
            }
            [] => None,
        };
    }
    if let Some(day) = number(first) {
        let [month, year, ..] = rest[..] else {
            return None;
        };
        return Date::new(self::year(year)?, self::month(month)?, day).ok();
    }
    let parts: Vec<&str> = first.split(['-', '/']).collect();
    match parts[..] {
        [year, month, day] if year.len() == 4 => {
            Date::new(self::year(year)?, month.parse().ok()?, day.parse().ok()?).ok()
        }
        [day, month, year] => Date::new(self::year(year)?, self::month(month)?, number(day)?).ok(),
        _ => None,
    }
}

/// A day, be it 5 or 5th.
fn number(word: &str) -> Option<i8> {
    let digits = ["st", "nd", "rd", "th"]
        .iter()
        .find_map(|ending| word.strip_suffix(ending))
        .unwrap_or(word);
    digits.parse().ok().filter(|day| (1..=31).contains(day))
}

/// By its name, or its first three or four letters.
fn month(word: &str) -> Option<i8> {
    let place = MONTHS.iter().position(|month| {
        *month == word || (matches!(word.len(), 3 | 4) && month.starts_with(word))
    })?;
    i8::try_from(place + 1).ok()
}

fn year(word: &str) -> Option<i16> {
    let is_year = word.len() == 4 && word.bytes().all(|byte| byte.is_ascii_digit());
    is_year.then(|| word.parse().ok()).flatten()
}

/// In lower case, without punctuation; `|` is between cells.
fn words(text: &str) -> Vec<String> {
    text.split(|c: char| c.is_whitespace() || ",;:()[]{}\"'’‘“”*_!?".contains(c))
        .map(|word| word.trim_matches('.').to_lowercase())
        .filter(|word| !word.is_empty())
        .collect()
}
