use super::super::pair::{Figure, Item};
use super::*;
use crate::eval::stats::{mcnemar_exact, normal, tango_interval};

/// A task of right and wrong answers: the first `lost` items lost, the next `gained` gained, `size` to a cluster.
fn task(name: &str, n: usize, lost: usize, gained: usize, size: usize) -> Pair {
    let item = |index: usize| Item {
        document: index,
        line: index + 1,
        name: None,
        cluster: (size > 1).then(|| (index / size).to_string()),
        baseline: if index < lost || index.is_multiple_of(2) && index >= lost + gained { 1.0 } else { 0.0 },
        candidate: if (lost..lost + gained).contains(&index)
            || index.is_multiple_of(2) && index >= lost + gained
        {
            1.0
        } else {
            0.0
        },
        weight: 1.0,
    };
    Pair {
        suite: "s".into(),
        task: name.into(),
        figure: Figure::Mean { metric: "acc".into(), higher_is_better: true },
        role: Role::Gating,
        margin: Some(0.02),
        is_identical: false,
        data: name.into(),
        items: (0..n).map(item).collect(),
    }
}

fn critical(pair: Pair) -> Pair {
    Pair { role: Role::Critical, ..pair }
}

fn judged(pairs: &[Pair]) -> Judgement {
    judge(pairs, &Policy::default())
}

fn statuses(judgement: &Judgement) -> Vec<Status> {
    judgement.tasks.iter().chain(&judgement.pool).map(|judged| judged.status).collect()
}

#[test]
fn equal_samples_pass_whatever_their_number() {
    let equal = |name| Pair { is_identical: true, ..critical(task(name, 5, 0, 0, 1)) };
    let judgement = judged(&[equal("a"), equal("b")]);
    assert_eq!(judgement.outcome, Outcome::Pass);
    assert_eq!(judgement.reasons, ["all samples are equal to the last bit"]);
    // an equal critical task is within its margin beside one that differs
    let judgement = judged(&[equal("a"), task("b", 2000, 40, 40, 1)]);
    assert_eq!(judgement.outcome, Outcome::Pass);
    assert_eq!(statuses(&judgement), [Status::Identical, Status::WithinMargin, Status::WithinMargin]);
    // equal answers from samples that are not equal take 133 items (the closed form of the bound)
    for (n, outcome) in [(132, Outcome::Inconclusive), (133, Outcome::Pass)] {
        assert_eq!(judged(&[task("a", n, 0, 0, 1)]).outcome, outcome, "{n}");
    }
}

#[test]
fn one_lost_item_of_zero_tolerance_fails_and_gains_do_not_make_up_for_it() {
    let zero = |lost, gained| Pair {
        role: Role::ZeroTolerance,
        margin: None,
        ..task("canary", 200, lost, gained, 1)
    };
    let big = task("big", 2000, 40, 40, 1);
    let failed = judged(&[big.clone(), zero(1, 30)]);
    assert_eq!(failed.outcome, Outcome::Fail);
    assert_eq!(failed.reasons, ["s/canary: 1 item lost, where none may be"]);
    assert_eq!(failed.tasks[1].lost, ["line 1"]);
    let passed = judged(&[big, zero(0, 30)]);
    assert_eq!(passed.outcome, Outcome::Pass);
    assert_eq!(passed.reasons[1], "no item lost in 1 tasks of zero tolerance");
    // nothing else: that is enough
    assert_eq!(judged(&[zero(0, 0)]).outcome, Outcome::Pass);
}

#[test]
fn single_items_are_mcnemar_and_tango() {
    let judgement = judged(&[task("a", 1000, 60, 20, 1)]);
    let found = &judgement.tasks[0].measured;
    assert_eq!((found.test.as_str(), found.interval_method), ("exact McNemar", "Tango"));
    assert_eq!(found.p, mcnemar_exact(60, 20));
    assert_eq!(found.lower, tango_interval(60.0, 20.0, 1000.0, normal::quantile(0.95)).lower);
    assert_eq!(found.interval, tango_interval(60.0, 20.0, 1000.0, normal::quantile(0.975)));
    assert_eq!((found.difference, found.flips, found.lost, found.gained), (-0.04, 0.08, 60, 20));
    assert_eq!((judgement.outcome, statuses(&judgement)), (Outcome::Fail, vec![Status::Worse]));
    assert_eq!(judgement.tasks[0].lost.len(), 60);
}

#[test]
fn clusters_are_never_single_items() {
    // 15 lost, 5 gained: p = 0.02 as single items; as whole clusters of 5 it is 3 against 1
    let single = judged(&[task("a", 200, 15, 5, 1)]);
    assert_eq!(single.outcome, Outcome::Fail);
    let clustered = judged(&[task("a", 200, 15, 5, 5)]);
    assert_eq!(clustered.outcome, Outcome::Inconclusive);
    let found = &clustered.tasks[0].measured;
    assert_eq!(found.p.worse, 5.0 / 16.0);
    assert_eq!((found.clusters, found.interval_method), (40, "Tango, clustered"));
    assert_eq!(found.test, "sign flips of 40 clusters, exact");
    assert!(found.design_effect > 4.0 && found.lower < single.tasks[0].measured.lower, "{found:?}");
}

#[test]
fn what_is_worse_but_within_the_margin_passes() {
    let judgement = judged(&[task("a", 20_000, 200, 50, 1)]);
    let only = &judgement.tasks[0];
    assert!(only.p_adjusted.unwrap() < 1e-9 && only.measured.lower > -0.02);
    assert_eq!(judgement.outcome, Outcome::Pass);
}

#[test]
fn an_undecided_task_blocks_if_it_is_critical_and_a_small_one_does_not() {
    let big = task("big", 4000, 100, 100, 1);
    let small = task("small", 100, 4, 2, 1);
    let judgement = judged(&[big.clone(), small.clone()]);
    assert_eq!(judgement.outcome, Outcome::Pass);
    assert_eq!(statuses(&judgement), [Status::WithinMargin, Status::TooSmall, Status::WithinMargin]);
    assert_eq!(judgement.tasks[1].planned_items, Some(773.0));
    let judgement = judged(&[big, critical(small)]);
    assert_eq!(judgement.outcome, Outcome::Inconclusive);
    assert!(judgement.reasons[0].starts_with("s/small: -2.00 points with 100 items"), "{judgement:?}");
    assert!(judgement.tasks[1].deciding_items.unwrap() > 100.0);
}

/// 20 tasks of which one has p = 0.02: that is chance, and Holm says so.
#[test]
fn many_tasks_do_not_add_up_to_a_failure() {
    let mut tasks: Vec<Pair> = (0..19).map(|index| task(&format!("t{index}"), 300, 7, 7, 1)).collect();
    tasks.push(task("unlucky", 300, 12, 3, 1));
    let judgement = judged(&tasks);
    let unlucky = &judgement.tasks[19];
    assert!(unlucky.measured.p.worse < 0.02 && unlucky.p_adjusted.unwrap() > 0.3);
    assert_eq!(judgement.outcome, Outcome::Pass);
}

#[test]
fn a_collapse_fails_even_a_task_too_small_for_its_margin() {
    let judgement = judged(&[task("big", 4000, 100, 100, 1), task("small", 150, 40, 2, 1)]);
    assert_eq!(judgement.outcome, Outcome::Fail);
    assert_eq!(judgement.tasks[1].status, Status::Worse);
    // unless the policy says that it decides nothing
    let reported = Pair { role: Role::Reported, ..task("small", 150, 40, 2, 1) };
    let judgement = judged(&[task("big", 4000, 100, 100, 1), reported]);
    assert_eq!((judgement.outcome, judgement.tasks[1].status), (Outcome::Pass, Status::Reported));
}

#[test]
fn tasks_over_one_data_set_share_its_items() {
    let on = |name: &str| Pair { data: "d".into(), ..task(name, 1000, 30, 30, 1) };
    let judgement = judged(&[on("letter"), on("cloze")]);
    let pool = judgement.pool.unwrap().measured;
    assert_eq!((pool.items, pool.clusters), (2000, 1000));
    assert!((pool.design_effect - 2.0).abs() < 0.01, "{pool:?}");
}

#[test]
fn graded_scores_and_figures_where_less_is_better() {
    let graded = |shift: f64| {
        let mut pair = task("f1", 600, 0, 0, 2);
        for (index, item) in pair.items.iter_mut().enumerate() {
            item.baseline = 0.5 + 0.01 * (index % 40) as f64;
            item.candidate = item.baseline - shift + 0.002 * (index % 7) as f64;
        }
        pair
    };
    let same = judged(&[graded(0.006)]);
    assert_eq!(same.outcome, Outcome::Pass, "{same:?}");
    assert_eq!(same.tasks[0].measured.interval_method, "BCa over clusters");
    assert_eq!(same.tasks[0].measured.test, "sign flips of 300 clusters, 10000 draws");
    let worse = judged(&[graded(0.05)]);
    assert_eq!(worse.outcome, Outcome::Fail);
    let turned = |pair: Pair| Pair {
        figure: Figure::Mean { metric: "deviation".into(), higher_is_better: false },
        ..pair
    };
    let better = judged(&[turned(graded(0.05))]);
    assert_eq!(better.outcome, Outcome::Pass);
    assert!(better.tasks[0].measured.difference > 0.04);
}

#[test]
fn texts_are_compared_in_bits_per_byte_and_stay_out_of_the_pool() {
    let texts = |bits: f64| {
        let mut pair = Pair { figure: Figure::BitsPerByte, margin: Some(0.05), ..task("ppl", 60, 0, 0, 1) };
        for (index, item) in pair.items.iter_mut().enumerate() {
            item.weight = 100.0 + index as f64;
            item.baseline = 1.5 * item.weight;
            item.candidate = (1.5 + bits + 0.01 * (index % 3) as f64) * item.weight;
        }
        pair
    };
    let judgement = judged(&[task("a", 4000, 100, 100, 1), critical(texts(0.0))]);
    assert_eq!(judgement.outcome, Outcome::Pass);
    let found = &judgement.tasks[1].measured;
    assert!((found.baseline - 1.5).abs() < 1e-12 && (found.difference + 0.01).abs() < 1e-3, "{found:?}");
    assert_eq!(judged(&[critical(texts(0.2))]).outcome, Outcome::Fail);
}

#[test]
fn nothing_to_decide_on_is_no_pass() {
    let reported = Pair { role: Role::Reported, ..task("a", 4000, 0, 0, 1) };
    for pairs in [vec![], vec![reported]] {
        assert_eq!(judged(&pairs).reasons, ["there is nothing to decide on"]);
    }
    let one_cluster = judged(&[task("a", 5000, 0, 0, 5000)]);
    assert_eq!(one_cluster.outcome, Outcome::Inconclusive);
}

/// Scores from 0 to 1 that all changed by about `loss`, up and down a little.
fn moved(n: usize, loss: f64) -> Pair {
    let mut pair = critical(task("moved", n, 0, 0, 1));
    for (index, item) in pair.items.iter_mut().enumerate() {
        item.baseline = 0.5;
        item.candidate = 0.5 - loss * (1.0 + 0.1 * (index % 5) as f64);
    }
    pair
}

/// What is allowed for changes not seen makes a pass harder. It is no evidence of a loss.
#[test]
fn a_loss_far_below_the_margin_fails_nothing_however_sure_it_is() {
    let small = judged(&[moved(30, 1e-5)]);
    let found = &small.tasks[0].measured;
    assert!(small.tasks[0].p_adjusted.unwrap() < 1e-3, "{small:?}");
    assert!(found.lower < -0.02 && found.lower_of_changes > -2e-5, "{found:?}");
    assert_eq!((small.outcome, statuses(&small)), (Outcome::Inconclusive, vec![Status::TooSmall]));
    // of more items the allowance is within the margin, too
    assert_eq!(judged(&[moved(140, 1e-5)]).outcome, Outcome::Pass);
    let large = judged(&[moved(30, 0.05)]);
    assert_eq!(large.outcome, Outcome::Fail);
    assert!(large.reasons[0].starts_with("s/moved: worse by 6.00 points, down to -6."), "{large:?}");
}

/// Deviations, from 0 to 10.
fn deviations(n: usize, margin: f64, candidate: impl Fn(usize) -> f64) -> Pair {
    let mut pair = critical(task("cvss", n, 0, 0, 1));
    pair.figure = Figure::Mean { metric: "mean_abs_deviation".into(), higher_is_better: false };
    pair.margin = Some(margin);
    for (index, item) in pair.items.iter_mut().enumerate() {
        item.baseline = if index == 0 { 9.8 } else { 1.5 };
        item.candidate = item.baseline + candidate(index);
    }
    pair
}

#[test]
fn equal_deviations_are_within_no_margin_that_their_number_cannot_show() {
    let equal = |n, margin| judged(&[deviations(n, margin, |_| 0.0)]);
    let few = equal(30, 0.0001);
    assert_eq!(few.outcome, Outcome::Inconclusive);
    // 9.8 z^2 / (30 + z^2)
    assert!((few.tasks[0].measured.lower + 0.8106).abs() < 1e-3, "{few:?}");
    let n = few.tasks[0].deciding_items.unwrap();
    assert_eq!(equal(30, 1.0).outcome, Outcome::Pass);
    assert_eq!(equal(52, 0.5).outcome, Outcome::Pass);
    let short = equal(50, 0.5);
    assert_eq!((short.outcome, short.tasks[0].deciding_items), (Outcome::Inconclusive, Some(51.0)));
    assert!(n > 260_000.0, "{n}");
    // nothing says how large a change could be
    let perfect = |mut pair: Pair| {
        pair.items.iter_mut().for_each(|item| (item.baseline, item.candidate) = (0.0, 0.0));
        Pair { figure: Figure::BitsPerByte, ..pair }
    };
    let passed = judged(&[perfect(deviations(30, 0.5, |_| 0.0))]);
    assert_eq!(passed.outcome, Outcome::Pass);
    assert!(
        passed.reasons[0].ends_with(", with nothing allowed for changes that were not seen"),
        "{passed:?}"
    );
    assert!(passed.tasks[0].measured.interval_method.contains("nothing changed"), "{passed:?}");
}

#[test]
fn too_few_clusters_for_a_bound_say_so_and_fail_by_the_difference_alone() {
    let lost = |margin| judged(&[deviations(9, margin, |index| 0.2 + 0.01 * index as f64)]);
    let unclear = lost(0.5);
    assert_eq!(unclear.outcome, Outcome::Inconclusive);
    assert_eq!(
        unclear.reasons,
        [
            "s/cvss: -0.2400 with 9 items in 9 clusters: below 10 of them nothing tells how much less it may be, so that it is \
          neither within the margin of 0.5000 nor shown to be worse; at least 52 items would decide"
        ]
    );
    let failed = lost(0.2);
    assert_eq!(failed.outcome, Outcome::Fail);
    assert!(
        failed.reasons[0]
            .starts_with("s/cvss: worse by 0.2400, down to -0.2400, more than the margin of 0.2000")
    );
}
