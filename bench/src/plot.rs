//! SVG plots: lines of cost against the number of prefixes, one per subject; and bars, one per subject.
//!
//! Depends only on summaries, not on the measures. The viewer chooses the fonts.

use std::path::Path;

use anyhow::Result;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::record::{Summary, distinct, float, number, thousands};

const FONT: &str = "sans-serif";
/// The palette of Okabe and Ito, which colour-blind readers can distinguish. The first colour is for the baseline.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0x99, 0x99, 0x99),
    RGBColor(0x00, 0x00, 0x00),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
];
const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
/// The x position of a list without prefixes, since 0 has no position on a logarithmic axis.
const NONE: f64 = 1.0;

/// The title of a plot, and the label of its value axis.
pub(crate) struct Axes<'a> {
    pub(crate) title: &'a str,
    pub(crate) value: &'a str,
}

/// Draws a panel for each case, with a line for each subject.
pub(crate) fn lines(path: &Path, axes: &Axes<'_>, summaries: &[Summary]) -> Result<()> {
    let cases = distinct(summaries.iter().map(|one| one.case.clone()));
    let subjects = distinct(summaries.iter().map(|one| one.subject.clone()));
    let rows = cases.len().div_ceil(2).max(1);
    let columns = cases.len().clamp(1, 2);
    let size = (620 * columns as u32, 60 + 420 * rows as u32);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(axes.title, (FONT, 24))?;
    // All panels have the same scale, so that they are comparable.
    let top = summaries
        .iter()
        .map(|one| one.upper_quartile)
        .fold(0.0, f64::max)
        * 1.08;
    for (panel, case) in root.split_evenly((rows, columns)).iter().zip(&cases) {
        let of_case = |one: &&Summary| one.case == *case;
        let most = summaries.iter().map(|one| one.prefixes).max().unwrap_or(1);
        let mut chart = ChartBuilder::on(panel)
            .caption(case, (FONT, 18))
            .margin(12)
            .margin_right(40)
            .x_label_area_size(46)
            .y_label_area_size(64)
            .build_cartesian_2d(
                (NONE * 0.8..x(most) * 1.3).log_scale(),
                RangedCoordf64::from(0.0..top),
            )?;
        chart
            .configure_mesh()
            .x_desc("prefixes")
            .y_desc(axes.value)
            .x_label_formatter(&|value| label(*value))
            .y_label_formatter(&|value| number(*value))
            .x_labels(8)
            .y_labels(8)
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_desc_style((FONT, 15))
            .label_style((FONT, 13))
            .draw()?;
        for (row, subject) in subjects.iter().enumerate() {
            let colour = COLOURS[row % COLOURS.len()];
            let of_subject = || {
                summaries
                    .iter()
                    .filter(of_case)
                    .filter(|one| one.subject == *subject)
            };
            let points: Vec<(f64, f64)> = of_subject()
                .map(|one| (x(one.prefixes), one.median))
                .collect();
            chart
                .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?
                .label(subject)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(3))
                });
            chart.draw_series(
                points
                    .iter()
                    .map(|point| Circle::new(*point, 4, colour.filled())),
            )?;
            chart.draw_series(of_subject().map(|one| {
                let x = x(one.prefixes);
                PathElement::new(
                    [(x, one.lower_quartile), (x, one.upper_quartile)],
                    colour.stroke_width(1),
                )
            }))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.85))
            .border_style(GRID)
            .label_font((FONT, 15))
            .draw()?;
    }
    root.present()?;
    Ok(())
}

/// Draws a panel for each number of prefixes, with a bar for each subject's median and a line between its quartiles.
pub(crate) fn bars(path: &Path, axes: &Axes<'_>, summaries: &[Summary]) -> Result<()> {
    let counts = distinct(summaries.iter().map(|one| one.prefixes));
    let subjects = distinct(summaries.iter().map(|one| one.subject.clone()));
    let height = 90 + 44 * subjects.len();
    let root =
        SVGBackend::new(path, (900, (50 + height * counts.len()) as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(axes.title, (FONT, 22))?;
    let top = summaries
        .iter()
        .map(|one| one.upper_quartile)
        .fold(0.0, f64::max)
        * 1.15;
    for (panel, &prefixes) in root.split_evenly((counts.len(), 1)).iter().zip(&counts) {
        // The first subject is at the top, and the axis counts from the bottom.
        let row = |subject: &str| {
            let from_top = subjects.iter().position(|one| one == subject).unwrap_or(0);
            subjects.len() - 1 - from_top
        };
        let after = |row: usize| {
            if row + 1 == subjects.len() {
                SegmentValue::Last
            } else {
                SegmentValue::Exact(row + 1)
            }
        };
        let mut chart = ChartBuilder::on(panel)
            .caption(format!("{} prefixes", thousands(prefixes)), (FONT, 17))
            .margin(10)
            .x_label_area_size(44)
            .y_label_area_size(150)
            .build_cartesian_2d(0.0..top, (0..subjects.len() - 1).into_segmented())?;
        chart
            .configure_mesh()
            .x_desc(axes.value)
            .x_label_formatter(&|value| number(*value))
            .y_label_formatter(&|row| match row {
                SegmentValue::CenterOf(row) if *row < subjects.len() => {
                    subjects[subjects.len() - 1 - row].clone()
                }
                _ => String::new(),
            })
            .y_labels(subjects.len())
            .disable_y_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_desc_style((FONT, 15))
            .label_style((FONT, 14))
            .draw()?;
        for one in summaries.iter().filter(|one| one.prefixes == prefixes) {
            let row = row(&one.subject);
            let index = subjects.len() - 1 - row;
            let (from, to) = (SegmentValue::Exact(row), after(row));
            let middle = SegmentValue::CenterOf(row);
            let mut bar = Rectangle::new(
                [(0.0, from), (one.median, to)],
                COLOURS[index % COLOURS.len()].mix(0.85).filled(),
            );
            bar.set_margin(7, 7, 0, 0);
            chart.draw_series([bar])?;
            let spread = [
                (one.lower_quartile, middle.clone()),
                (one.upper_quartile, middle.clone()),
            ];
            chart.draw_series([PathElement::new(spread, BLACK.stroke_width(2))])?;
            let text = number(one.median);
            let beside = (one.upper_quartile + top * 0.01, middle);
            let style = (FONT, 14).into_font().color(&BLACK);
            chart.draw_series([Text::new(
                text,
                beside,
                style.pos(Pos::new(HPos::Left, VPos::Center)),
            )])?;
        }
    }
    root.present()?;
    Ok(())
}

/// Returns the position of a number of prefixes on the x axis.
fn x(prefixes: usize) -> f64 {
    if prefixes == 0 {
        NONE
    } else {
        float(prefixes as u64)
    }
}

fn label(row: f64) -> String {
    if (row - NONE).abs() < 0.5 {
        "0".to_owned()
    } else {
        thousands(format_args!("{row:.0}"))
    }
}
