//! Announcements that addresses expire or were removed, in the text beside them.
//!
//! "Will be deprecated on 5 April 2020" leaves the addresses valid up to and on that day; "was deprecated",
//! "deprecated" and "no longer used" do not; "is not deprecated" has no effect. A phrase such as "replaces the
//! deprecated ones" is unclear: the addresses stay, with a note. Reads English words only. Knows no pages.
//! docs/sources.md lists the words.

use jiff::civil::Date;

/// Words that announce by themselves that addresses were removed.
const ENDED: [&str; 6] = [
    "deprecated",
    "retired",
    "decommissioned",
    "discontinued",
    "obsolete",
    "sunsetted",
];
/// Words that announce that addresses were removed if an auxiliary verb stands before them, or if they stand alone or
/// with a date.
const ENDED_WITH_VERB: [&str; 14] = [
    "removed",
    "withdrawn",
    "disabled",
    "deleted",
    "sunset",
    "phased",
    "shut",
    "inactive",
    "expired",
    "revoked",
    "terminated",
    "archived",
    "superseded",
    "unused",
];
/// Words that announce a future removal of addresses, with or without a date.
const ENDING: [&str; 5] = [
    "deprecating",
    "retiring",
    "decommissioning",
    "sunsetting",
    "removing",
];
/// Words that announce a removal of addresses if a date stands with them, and are unclear without a date.
const END: [&str; 7] = [
    "deprecation",
    "retirement",
    "removal",
    "decommission",
    "eol",
    "end-of-life",
    "end-of-support",
];
/// Words that announce a removal of addresses if nothing but a date stands beside them.
const UP_TO: [&str; 7] = [
    "until",
    "till",
    "expires",
    "expire",
    "expiry",
    "expiration",
    "ends",
];
/// Words that announce a removal of addresses after "no longer".
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
/// Words that make the announcement before or after them conditional, or make it about other addresses.
const OF_OTHERS: [&str; 26] = [
    "replaces",
    "replace",
    "replaced",
    "replacing",
    "replacement",
    "replacements",
    "instead",
    "unlike",
    "except",
    "formerly",
    "previously",
    "than",
    "supersedes",
    "superseding",
    "successor",
    "alternative",
    "versus",
    "vs",
    "if",
    "when",
    "once",
    "unless",
    "before",
    "whether",
    "can",
    "should",
];
/// Words that may stand beside an announcement of a removal without changing its meaning.
const FILLERS: [&str; 57] = [
    "on",
    "since",
    "as",
    "of",
    "the",
    "in",
    "at",
    "from",
    "by",
    "effective",
    "date",
    "status",
    "state",
    "currently",
    "now",
    "recently",
    "already",
    "ip",
    "ips",
    "ipv4",
    "ipv6",
    "address",
    "addresses",
    "range",
    "ranges",
    "prefix",
    "prefixes",
    "subnet",
    "subnets",
    "network",
    "networks",
    "block",
    "blocks",
    "cidr",
    "cidrs",
    "entry",
    "entries",
    "host",
    "hosts",
    "server",
    "servers",
    "egress",
    "ingress",
    "outbound",
    "inbound",
    "valid",
    "active",
    "use",
    "used",
    "supported",
    "only",
    "available",
    "good",
    "out",
    "off",
    "down",
    "end",
];
/// The maximum distance, in words, between an auxiliary verb and its participle, as in "will be removed"; a verb
/// farther away is ignored.
const REACH: usize = 5;
/// The maximum distance, in words, between a word that announces a removal and the date after it. A date before the
/// word may be [`REACH`] words farther away; a date beyond these limits is ignored.
const DATE_REACH: usize = 8;
/// The maximum number of words in a part of a text, such as a clause between commas, that can be nothing but an
/// announcement. A longer part counts as one with other content.
const MOST_ALONE: usize = 16;
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

/// The announcement that a text makes about the addresses it concerns, such as their removal; ordered from best to
/// worst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Fate {
    /// The text announces nothing, so the addresses stay valid.
    #[default]
    Stays,
    /// The text may mean that the addresses were removed or will be removed.
    Unclear,
    /// The text announces that the addresses will be removed, on a day that is not known.
    Sometime,
    /// The text announces that the addresses are valid up to and on this day.
    Until(Date),
    /// The text announces that the addresses are deprecated or were removed.
    Gone,
}

impl Fate {
    /// Returns the worse of two announcements; of two days, the earlier one.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Gone, _) | (_, Self::Gone) => Self::Gone,
            (Self::Until(one), Self::Until(other)) => Self::Until(one.min(other)),
            (Self::Until(day), _) | (_, Self::Until(day)) => Self::Until(day),
            (Self::Sometime, _) | (_, Self::Sometime) => Self::Sometime,
            (Self::Unclear, _) | (_, Self::Unclear) => Self::Unclear,
            (Self::Stays, Self::Stays) => Self::Stays,
        }
    }
}

/// Returns the announcement that a row, list item, paragraph, heading or label makes about its addresses.
pub(super) fn fate(text: &str) -> Fate {
    let words = words(text);
    (0..words.len())
        .map(|at| fate_at(&words, at))
        .fold(Fate::Stays, Fate::and)
}

/// Returns whether a header such as "Deprecated" or "Valid until" states that its column is about the removal of
/// addresses.
pub(super) fn names_end(header: &str) -> bool {
    words(header).iter().any(|word| {
        let word = &*word.text;
        ENDED.contains(&word)
            || ENDED_WITH_VERB.contains(&word)
            || END.contains(&word)
            || UP_TO.contains(&word)
    })
}

/// Returns the announcement of a cell about its row's addresses, if the cell's column is about removals (see
/// `names_end`).
pub(super) fn fate_of_cell(text: &str) -> Fate {
    let words = words(text);
    let dates = dates(&words, 0, words.len());
    match &*text.trim().to_lowercase() {
        "" | "no" | "n" | "false" | "0" | "-" | "–" | "—" | "n/a" | "none" | "never" | "✗"
        | "✘" | "❌" | "tbd" => Fate::Stays,
        "yes" | "y" | "true" | "1" | "x" | "✓" | "✔" | "☑" | "✅" => Fate::Gone,
        _ => match dates.first() {
            Some(date) => Fate::Until(*date),
            None => Fate::Unclear,
        },
    }
}

/// The tense of a statement such as "will be removed", or the fact that it is negated or unclear.
enum Tense {
    Never,
    Future,
    Past,
    /// The auxiliary verb before the participle is "is" or "are".
    Present,
    /// The statement is about other addresses, or is only a possibility.
    Unclear,
    /// No auxiliary verb stands before the participle.
    Bare,
}

fn fate_at(words: &[Word], at: usize) -> Fate {
    let word = &*words[at].text;
    let next = |number: usize| words.get(at + number).map_or("", |word| &word.text);
    let after = |from| dates(words, from, from + DATE_REACH);
    let before = || dates(words, at.saturating_sub(DATE_REACH + REACH), at);
    let near = |from| {
        after(from)
            .first()
            .copied()
            .or_else(|| before().last().copied())
    };
    if word == "no" && next(1) == "longer" {
        return match tense(words, at) {
            _ if !USED.contains(&next(2)) => Fate::Stays,
            Tense::Future => near(at + 1).map_or(Fate::Sometime, Fate::Until),
            Tense::Past => Fate::Gone,
            Tense::Never => Fate::Stays,
            Tense::Unclear => Fate::Unclear,
            Tense::Present | Tense::Bare => after(at + 1)
                .first()
                .copied()
                .map_or(Fate::Gone, Fate::Until),
        };
    }
    let is_unused = word == "not"
        && (["active", "used", "valid", "supported"].contains(&next(1))
            || (next(1), next(2)) == ("in", "use"));
    if is_unused {
        return if is_alone(words, at) {
            Fate::Gone
        } else {
            Fate::Unclear
        };
    }
    if UP_TO.contains(&word) {
        return up_to(words, at, after(at + 1).first().copied());
    }
    let is_end = END.contains(&word)
        || (word == "end" && next(1) == "of" && ["life", "support"].contains(&next(2)));
    if is_end || ENDING.contains(&word) {
        let is_scheduled = ENDING.contains(&word) || matches!(tense(words, at), Tense::Future);
        return match (tense(words, at), near(at + 1)) {
            (Tense::Never, _) => Fate::Stays,
            (Tense::Unclear, _) => Fate::Unclear,
            (_, Some(date)) => Fate::Until(date),
            (_, None) if is_scheduled => Fate::Sometime,
            (_, None) => Fate::Unclear,
        };
    }
    let is_weak = ENDED_WITH_VERB.contains(&word);
    if !is_weak && !ENDED.contains(&word) {
        return Fate::Stays;
    }
    match tense(words, at) {
        Tense::Future => near(at + 1).map_or(Fate::Sometime, Fate::Until),
        Tense::Past => Fate::Gone,
        Tense::Never => Fate::Stays,
        Tense::Unclear => Fate::Unclear,
        Tense::Bare if is_coordinated(words, at) => Fate::Unclear,
        Tense::Bare if is_weak && !is_alone(words, at) => Fate::Unclear,
        Tense::Present | Tense::Bare => after(at + 1)
            .first()
            .copied()
            .map_or(Fate::Gone, Fate::Until),
    }
}

/// Returns the announcement that "until DATE" or "expires on DATE" makes. `at` is the index of "until" or "expires";
/// `date` is `None` if no unambiguous date follows.
fn up_to(words: &[Word], at: usize, date: Option<Date>) -> Fate {
    let near = words[at + 1..].iter().take(2);
    let has_digit = near
        .clone()
        .any(|word| word.text.contains(|c: char| c.is_ascii_digit()));
    let is_least = near.clone().any(|word| word.text == "least");
    match (tense(words, at), date) {
        // "Not available until" is a beginning.
        (Tense::Never | Tense::Unclear, Some(_)) => Fate::Unclear,
        (_, Some(date)) if is_alone(words, at) && !is_least => Fate::Until(date),
        (_, Some(_)) => Fate::Unclear,
        // A date that is another day on each side of an ocean, or has no year.
        (_, None) if has_digit && is_alone(words, at) => Fate::Sometime,
        (_, None) => Fate::Stays,
    }
}

/// Returns the tense of the nearest auxiliary verb before the word with the index `at`.
fn tense(words: &[Word], at: usize) -> Tense {
    let near = words[..at].iter().enumerate().rev().take(REACH);
    let mut has_been = false;
    let mut is_unclear = false;
    for (place, word) in near.take_while(|(_, word)| word.text != "|") {
        match &*word.text {
            "not" | "never" | "t" | "cannot" | "without" | "non" | "nor" | "neither" => {
                return Tense::Never;
            }
            "longer" if place > 0 && words[place - 1].text == "no" => return Tense::Never,
            _ if is_unclear => {}
            "will" | "shall" | "to" | "ll" | "being" | "scheduled" | "planned" | "pending"
            | "upcoming" => return Tense::Future,
            "was" | "were" | "has" | "have" | "had" => return Tense::Past,
            "is" | "are" => return Tense::Present,
            "been" => has_been = true,
            "may" | "might" | "could" | "must" if words[place + 1].text == "be" => {
                is_unclear = true;
            }
            word if OF_OTHERS.contains(&word) => is_unclear = true,
            _ => {}
        }
    }
    match (is_unclear, has_been) {
        (true, _) => Tense::Unclear,
        (false, true) => Tense::Past,
        (false, false) => Tense::Bare,
    }
}

/// Returns whether "and" or "or" joins the word with the index `at` to one that announces no removal, as in "current
/// and deprecated addresses".
fn is_coordinated(words: &[Word], at: usize) -> bool {
    let is_other = |place: Option<usize>| {
        let word = place.and_then(|place| words.get(place));
        word.is_some_and(|word| {
            word.segment == words[at].segment
                && !ENDED.contains(&&*word.text)
                && !ENDED_WITH_VERB.contains(&&*word.text)
                && !is_address(&word.text)
        })
    };
    let is_and = |place: Option<usize>| {
        let word = place.and_then(|place| words.get(place));
        word.is_some_and(|word| ["and", "or", "&", "+"].contains(&&*word.text))
    };
    (is_and(at.checked_sub(1)) && is_other(at.checked_sub(2)))
        || (is_and(Some(at + 1)) && is_other(Some(at + 2)))
}

/// Returns whether the segment (the words between two separators, such as commas) around the word with the index `at`
/// contains only a date and words of `FILLERS` besides that word.
fn is_alone(words: &[Word], at: usize) -> bool {
    let segment = words[at].segment;
    let is_here = |word: &&Word| word.segment == segment;
    let before = words[..at].iter().rev().take_while(is_here);
    let after = words[at + 1..].iter().take_while(is_here);
    let beside: Vec<&Word> = before
        .take(MOST_ALONE)
        .chain(after.take(MOST_ALONE))
        .collect();
    beside.len() < MOST_ALONE
        && beside.iter().all(|word| {
            let word = &*word.text;
            FILLERS.contains(&word)
                || ["st", "nd", "rd", "th"].contains(&word)
                || ["not", "least"].contains(&word)
                || month(word).is_some()
                || word.contains(|c: char| c.is_ascii_digit())
        })
}

fn is_address(word: &str) -> bool {
    word.matches('.').count() > 2 || word.matches(':').count() > 1
}

/// Returns the dates that start at a word with an index from `from` to below `to`, in their order.
fn dates(words: &[Word], from: usize, to: usize) -> Vec<Date> {
    let mut dates = Vec::new();
    let mut at = from;
    while at < to.min(words.len()) {
        let date = date(&words[at..]);
        dates.extend(date);
        // "5 April 2020" is not "April 2020" too, and neither is "31 April 2020".
        let is_day = number(&words[at].text).is_some();
        at += if date.is_some() || is_day { 2 } else { 1 };
    }
    dates
}

/// Returns the date with which the words start, if any: "5 April 2020", "5th of April 2020", "April 5 2020",
/// "2020-04-05", or the last day of "April 2020". Not "4/5/2020", whose order of day and month differs between
/// countries.
fn date(words: &[Word]) -> Option<Date> {
    let first = &*words.first()?.text;
    let rest: Vec<&str> = words[1..]
        .iter()
        .map(|word| &*word.text)
        .filter(|word| !["of", "st", "nd", "rd", "th"].contains(word))
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
    let parts: Vec<&str> = first.split(['-', '/']).take(4).collect();
    match parts[..] {
        [year, month, day] if year.len() == 4 => {
            Date::new(self::year(year)?, month.parse().ok()?, day.parse().ok()?).ok()
        }
        [day, month, year] => Date::new(self::year(year)?, self::month(month)?, number(day)?).ok(),
        _ => None,
    }
}

/// Returns the day of the month that a word such as "5" or "5th" means; `None` if it means none.
fn number(word: &str) -> Option<i8> {
    let digits = ["st", "nd", "rd", "th"]
        .iter()
        .find_map(|ending| word.strip_suffix(ending))
        .unwrap_or(word);
    digits.parse().ok().filter(|day| (1..=31).contains(day))
}

/// Returns the number of a month, from 1, by its lower-case English name or the first three or four letters of that
/// name.
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

/// A word of a text, in lower case and without punctuation, or `|`, which separates the cells of a table row.
struct Word {
    text: String,
    /// The index of the segment of the text, between separators such as commas and brackets, that contains the word.
    segment: usize,
}

fn words(text: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut segment = 0;
    // Colons of addresses and dashes of dates are within words.
    for piece in text.split_inclusive(|c: char| c.is_whitespace() || ",;()[]{}|".contains(c)) {
        let bare = piece.trim_end_matches(|c: char| c.is_whitespace() || ",;()[]{}|".contains(c));
        for word in bare.split(|c: char| "\"'’‘“”*_!?".contains(c)) {
            let is_separator = matches!(word, "-" | "–" | "—" | "|" | ":");
            let ends_part = word.ends_with(':');
            let word = word.trim_matches(['.', ':']).to_lowercase();
            segment += usize::from(is_separator);
            if !word.is_empty() && !is_separator {
                words.push(Word {
                    text: word,
                    segment,
                });
            }
            segment += usize::from(ends_part);
        }
        if piece.contains('|') {
            words.push(Word {
                text: "|".to_owned(),
                segment,
            });
        }
        segment += usize::from(piece.contains(|c: char| ",;()[]{}|".contains(c)));
    }
    words
}
