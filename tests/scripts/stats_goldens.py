"""Golden values of src/eval/stats, by scipy and statsmodels.

    python tests/scripts/stats_goldens.py tests/golden/stats/goldens.json

Tango's interval is in neither: here it is the definition itself (the score test inverted, with the constrained
maximum of the likelihood found numerically), beside an example published with its interval.
"""

import json
import sys

import numpy as np
import scipy
import statsmodels
import statsmodels.api as sm
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import normal_sample_size_one_tail


def philox(counter, key):
    """Philox4x32-10 (Salmon et al. 2011) of arrays of counters."""
    c = [np.asarray(x, dtype=np.uint64) for x in np.broadcast_arrays(*counter)]
    k = list(key)
    mask = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        first, second = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (second >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]),
            second & mask,
            (first >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]),
            first & mask,
        ]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(c, axis=-1)


def draws_of(n_clusters, n_draws, seed):
    """The cluster indexes of each draw, as src/eval/stats/bootstrap.rs has them; purpose 4 is the bootstrap."""
    blocks = np.arange((n_clusters + 3) // 4)
    words = philox((np.arange(n_draws)[:, None], blocks[None, :], 0, 4), (seed & 0xFFFFFFFF, seed >> 32))
    words = words.reshape(n_draws, -1)[:, :n_clusters]
    return ((words * np.uint64(n_clusters)) >> np.uint64(32)).astype(int)


def tango(lost, gained, n, level):
    """The two bounds, each one-sided at `level`."""
    z = stats.norm.ppf(level)
    estimate = (gained - lost) / n

    def score(delta):
        low, high = max(0.0, -delta), (1 - delta) / 2

        def slope(q):
            total = gained / (q + delta) if gained else 0.0
            total += lost / q if lost else 0.0
            return total - 2 * (n - gained - lost) / (1 - 2 * q - delta)

        inner_low, inner_high = low + 1e-15, high - 1e-15
        if slope(inner_low) <= 0:
            q = low
        elif slope(inner_high) >= 0:
            q = high
        else:
            q = optimize.brentq(slope, inner_low, inner_high, xtol=1e-16, rtol=1e-15)
        variance = n * (2 * q + delta * (1 - delta))
        return (gained - lost - n * delta) / np.sqrt(max(variance, 1e-300))

    def bound(sign, end):
        if score(end) * sign <= z and abs(estimate - end) < 1e-9:
            return end
        return optimize.brentq(lambda d: sign * score(d) - z, min(estimate, end), max(estimate, end), xtol=1e-15)

    return [bound(1, -1 + 1e-12), bound(-1, 1 - 1e-12)]


def distributions():
    x = [-30.0, -6.0, -2.5, -1.0, 0.0, 0.3, 1.2, 2.12, 2.13, 4.0, 9.0, 37.0]
    p = [1e-300, 1e-12, 0.001, 0.025, 0.2, 0.5, 0.8, 0.95, 0.975, 0.999999]
    t = [[t, df] for df in (1, 2, 3, 10, 59, 60, 999, 99999) for t in (0.0, 0.5, 1.7, 5.0, 40.0, -2.0)]
    tp = [[p, df] for df in (1, 2, 3, 7, 29, 200, 1999, 99999) for p in (0.6, 0.95, 0.975, 0.9999, 0.05)]
    return {
        "normal_sf": [[v, float(stats.norm.sf(v))] for v in x],
        "normal_quantile": [[v, float(stats.norm.ppf(v))] for v in p],
        "t_sf": [[a, b, float(stats.t.sf(a, b))] for a, b in t],
        "t_quantile": [[a, b, float(stats.t.ppf(a, b))] for a, b in tp],
    }


def tests():
    pairs = [(357, 246), (262, 254), (0, 1), (12, 3), (3, 12), (40, 40), (2000, 1800), (50500, 49500), (5300, 4700)]
    mcnemars = []
    for lost, gained in pairs:
        two = float(mcnemar([[0, lost], [gained, 0]], exact=True).pvalue)
        one = float(stats.binomtest(lost, lost + gained, 0.5, alternative="greater").pvalue)
        mcnemars.append({"lost": lost, "gained": gained, "worse": one, "two_sided": two})
    families = [[0.01, 0.04, 0.03, 0.005], [0.5], [0.02, 0.02, 0.02], [0.9, 0.001, 0.4, 0.3, 0.012, 0.012, 1.0]]
    holms = [{"p": p, "adjusted": multipletests(p, method="holm")[1].tolist()} for p in families]
    rng = np.random.default_rng(7)
    flips = []
    for sums in (
        rng.integers(-4, 4, 12).astype(float),
        np.round(rng.normal(-0.3, 1, 14), 3),
        np.array([-2.0, -1, 1, -3, -2, -1, 0, 0, 1, -1, -1, 2, -2, -4]),
    ):
        run = lambda alternative: stats.permutation_test(
            (sums,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative=alternative
        ).pvalue
        flips.append({"sums": sums.tolist(), "worse": float(run("less")), "two_sided": float(run("two-sided"))})
    return {"mcnemar": mcnemars, "holm": holms, "sign_flip": flips}


def intervals():
    cases = [(7, 1, 21), (0, 0, 133), (5, 0, 40), (30, 12, 800), (12, 30, 800), (357, 246, 2500), (1, 0, 100000)]
    tangos = []
    for lost, gained, n in cases:
        for level in (0.95, 0.975):
            low, high = tango(lost, gained, n, level)
            tangos.append({"lost": lost, "gained": gained, "n": n, "level": level, "lower": low, "upper": high})
    return {"tango": tangos}


def clusters():
    rng = np.random.default_rng(11)
    errors, boots = [], []
    for n, n_clusters in ((60, 60), (200, 31), (500, 7)):
        labels = np.arange(n) if n == n_clusters else np.sort(rng.integers(0, n_clusters, n))
        labels = np.unique(labels, return_inverse=True)[1]
        values = np.round(rng.normal(0, 1, n) + rng.normal(0, 0.5, n_clusters)[labels], 4)
        fit = lambda corrected: sm.OLS(values, np.ones(n)).fit(
            cov_type="cluster", cov_kwds={"groups": labels, "use_correction": corrected}
        ).bse[0]
        case = {"values": values.tolist(), "clusters": labels.tolist()}
        errors.append(case | {"plain": float(fit(False)), "corrected": float(fit(True))})
    for n, n_clusters, seed in ((40, 40, 0), (300, 25, 5), (90, 33, 2**40 + 3)):
        labels = np.arange(n) if n == n_clusters else np.concatenate(
            [np.arange(n_clusters), rng.integers(0, n_clusters, n - n_clusters)]
        )
        values = np.round(rng.exponential(1, n) - 0.9, 4)
        sums, sizes = np.bincount(labels, values), np.bincount(labels).astype(float)
        figure = lambda index, axis=-1: sums[index].sum(axis) / sizes[index].sum(axis)
        figures = figure(draws_of(n_clusters, 2000, seed))
        start = stats.bootstrap((np.arange(n_clusters),), figure, n_resamples=1, rng=0, method="percentile")
        start.bootstrap_distribution = figures
        bounds = {}
        for method in ("BCa", "percentile"):
            result = stats.bootstrap(
                (np.arange(n_clusters),), figure, n_resamples=0, confidence_level=0.9, method=method,
                bootstrap_result=start, vectorized=True,
            )
            bounds[method] = [float(v) for v in result.confidence_interval]
        boots.append({"values": values.tolist(), "clusters": labels.tolist(), "seed": seed, "draws": 2000} | bounds)
    return {"clustered_se": errors, "bootstrap": boots}


def power():
    cases = [(0.02, 0.05, 0.8), (0.02, 0.1, 0.9), (0.03, 0.05, 0.8), (0.01, 0.02, 0.95)]
    required = [
        [m, flips, p, float(np.ceil(normal_sample_size_one_tail(m, p, 0.05, std_null=np.sqrt(flips))))]
        for m, flips, p in cases
    ]
    return {"required": required}


def main():
    versions = f"scipy {scipy.__version__}, statsmodels {statsmodels.__version__}, numpy {np.__version__}"
    goldens = {"made_by": versions} | distributions() | tests() | intervals() | clusters() | power()
    with open(sys.argv[1], "w") as out:
        out.write("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in goldens.items()) + "\n}\n")


main()
