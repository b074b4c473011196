// A mixture combines its [N, C] tables, forward and backward, for CPUs.
//
// A mixture normalizes with mean = sum_k w_k mean_k and var = sum_k w'_k var_k (Eq. (3)). Its
// members are any of in, ln, bn, gn. Batch, instance, layer and group normalization are mixtures
// of one member.

#pragma once

#include "kernels.h"

namespace {

enum Member { kInstance, kLayer, kBatch, kGroup, kMembers };

// The sets over which a member averages: sample j and channel c are in set
// j % rows * columns + c / width. Sample j is in statistics group j % replicas.
struct Sets {
  Index rows, columns, width;

  Index count() const { return rows * columns; }
  Index first(Index j) const { return j % rows * columns; }
};

// What the tables of a layer depend on.
struct Layout : Sizes {
  Index replicas, channel_groups, count;
  const int64_t* members;

  Sets sets_of(Index member) const {
    switch (member) {
      case kLayer: return {samples, 1, channels};
      case kBatch: return {replicas, channels, 1};
      case kGroup: return {samples, channel_groups, channels / channel_groups};
      default: return {samples, channels, 1};
    }
  }
};

// The tables in a buffer: six of [N, C], the weights for means and for variances, and the
// statistics of each member over its sets, BN's at the end; IN's are the first two tables. In
// backward a second buffer has the gradients of mean, var and the members' statistics at the same
// places, the sums over pixels in `center` and `scale`, and the input gradient's b and c in `shift`
// and `rstd`.
template <typename S> struct Tables : Layout {
  S *mean, *var, *center, *scale, *shift, *rstd, *mean_weights, *var_weights;
  Sets sets[kMembers];
  S *means[kMembers], *vars[kMembers];

  Tables(const Layout& layout, S* buffer) : Layout(layout) {
    const auto take = [&buffer](Index size) { return (buffer += size) - size; };
    for (S** table : {&mean, &var, &center, &scale, &shift, &rstd})
      *table = take(samples * channels);
    mean_weights = take(count), var_weights = take(count);
    for (const bool batch : {false, true})
      for (Index k = 0; k < count; ++k) {
        if ((members[k] == kBatch) != batch) continue;
        sets[k] = sets_of(members[k]);
        const bool own = members[k] != kInstance;
        means[k] = own ? take(sets[k].count()) : mean;
        vars[k] = own ? take(sets[k].count()) : var;
      }
  }
};

// ---- threads -----------------------------------------------------------------------------------

// One thread's part of the [N, C] tables: some rows, or, for BN, whose sets are columns, some
// columns. No sum is split, so results do not depend on the number of threads.
struct Part {
  Index row, rows_end, column, columns_end;
};

// With fewer entries, one thread finishes before a second one wakes up.
constexpr Index kEntriesForThreads = 32768;

// Calls body(rows, columns) in each thread, with its part of the rows and of the columns.
template <typename Body> inline void for_each_part(const Layout& t, Body body) {
  const Part whole{0, t.samples, 0, t.channels};
  if (t.threads == 1 || t.samples * t.channels < kEntriesForThreads) return body(whole, whole);
#pragma omp parallel for schedule(static) num_threads(t.threads)
  for (int thread = 0; thread < t.threads; ++thread) {
    const auto bound = [&](Index all, int at) { return all * at / t.threads; };
    body(Part{bound(t.samples, thread), bound(t.samples, thread + 1), 0, t.channels},
         Part{0, t.samples, bound(t.channels, thread), bound(t.channels, thread + 1)});
  }
}

// ---- loops over entries of the tables ----------------------------------------------------------
// Within a row, sets are either columns or runs of columns. Each has a loop that vectorizes.

// Calls body(e) for each set e of the part.
template <typename Body> inline void over_sets(const Sets& sets, const Part& part, Body body) {
  const Index first = sets.width == 1 ? part.column : 0;
  const Index last = sets.width == 1 ? part.columns_end : sets.columns;
  for (Index row = part.row; row < std::min(part.rows_end, sets.rows); ++row)
    for (Index e = row * sets.columns + first; e < row * sets.columns + last; ++e) body(e);
}

// Calls body(i, e) for each entry i of row j and its set e.
template <typename Body>
inline void over_row(const Layout& t, const Sets& sets, Index j, Body body) {
  const Index start = j * t.channels;
  if (sets.width == 1) {
#pragma omp simd
    for (Index c = 0; c < t.channels; ++c) body(start + c, sets.first(j) + c);
  } else {
    for (Index g = 0; g < sets.columns; ++g)
#pragma omp simd
      for (Index c = g * sets.width; c < (g + 1) * sets.width; ++c)
        body(start + c, sets.first(j) + g);
  }
}

// The sum of table[i] * statistics[e] over row j.
template <typename S>
inline double inner_product(const Layout& t, const Sets& sets, Index j, const S* table,
                            const S* statistics) {
  table += j * t.channels, statistics += sets.first(j);
  double total = 0;
  for (Index g = 0; g < (sets.width == 1 ? 1 : sets.columns); ++g) {
    // One run of columns, or all columns with a set each.
    const Index start = g * sets.width, end = sets.width == 1 ? t.channels : start + sets.width;
#pragma omp simd reduction(+ : total)
    for (Index c = start; c < end; ++c)
      total += double(table[c]) * statistics[sets.width == 1 ? c : g];
  }
  return total;
}

// to[e] = the average of value(i, e) over the entries i of set e.
template <typename S, typename Value>
inline void average(const Layout& t, const Sets& sets, const Part& part, S* to, Value value) {
  over_sets(sets, part, [=](Index e) { to[e] = S(0); });
  for (Index j = part.row; j < part.rows_end; ++j) {
    const Index start = j * t.channels, first = sets.first(j);
    if (sets.width == 1) {
#pragma omp simd
      for (Index c = part.column; c < part.columns_end; ++c)
        to[first + c] += value(start + c, first + c);
      continue;
    }
    for (Index g = 0; g < sets.columns; ++g) {
      S total = 0;
#pragma omp simd reduction(+ : total)
      for (Index c = g * sets.width; c < (g + 1) * sets.width; ++c)
        total += value(start + c, first + g);
      to[first + g] += total;
    }
  }
  const S inverse = S(sets.count()) / S(t.samples * t.channels);
  over_sets(sets, part, [=](Index e) { to[e] *= inverse; });
}

// ---- forward -----------------------------------------------------------------------------------

// A member's mean and variance by the law of total variance (Eq. (5)). The mean is refined once by
// the average of the residuals: fp32 sums of large means lose digits that the variance needs.
template <typename S> void member_statistics(const Tables<S>& t, Index k, const Part& part) {
  const S *mean = t.mean, *var = t.var;
  S *mu = t.means[k], *total = t.vars[k];
  average(t, t.sets[k], part, mu, [=](Index i, Index) { return mean[i]; });
  average(t, t.sets[k], part, total, [=](Index i, Index e) { return mean[i] - mu[e]; });
  over_sets(t.sets[k], part, [=](Index e) { mu[e] += total[e]; });
  average(t, t.sets[k], part, total, [=](Index i, Index e) {
    const S between = mean[i] - mu[e];
    return between * between + var[i];
  });
}

template <typename S> void softmax(const S* logits, Index count, S* weights) {
  if (!logits) return void(std::fill_n(weights, count, S(1)));
  const double top = *std::max_element(logits, logits + count);
  double powers[kMembers], total = 0;
  for (Index k = 0; k < count; ++k) total += powers[k] = std::exp(double(logits[k]) - top);
  for (Index k = 0; k < count; ++k) weights[k] = S(powers[k] / total);
}

// Eq. (3) and the affine map's tables, from t.mean and t.var. BN's statistics are the stored ones,
// if given.
template <typename S>
void combine(const Tables<S>& t, const S* stored_mean, const S* stored_var, const S* mean_logits,
             const S* var_logits, const S* gamma, const S* beta, double eps) {
  softmax(mean_logits, t.count, t.mean_weights);
  softmax(var_logits, t.count, t.var_weights);
  for_each_part(t, [&t, stored_mean, stored_var](const Part& rows, const Part& columns) {
    for (Index k = 0; k < t.count; ++k) {
      const bool batch = t.members[k] == kBatch;
      if (batch && stored_mean) {
        over_sets(t.sets[k], columns, [&t, stored_mean, stored_var, k](Index e) {
          t.means[k][e] = stored_mean[e % t.channels];
          t.vars[k][e] = stored_var[e % t.channels];
        });
      } else if (t.members[k] != kInstance) {
        member_statistics(t, k, batch ? columns : rows);
      }
    }
  });
  for_each_part(t, [&t, gamma, beta, eps](const Part& rows, const Part&) {
    for (Index j = rows.row; j < rows.rows_end; ++j) {
      const Index start = j * t.channels;
      S *center = t.center, *r = t.rstd;
      std::fill_n(center + start, t.channels, S(0));
      std::fill_n(r + start, t.channels, S(0));
      for (Index k = 0; k < t.count; ++k) {
        const S w = t.mean_weights[k], v = t.var_weights[k], *mu = t.means[k], *var = t.vars[k];
        over_row(t, t.sets[k], j, [=](Index i, Index e) {
          center[i] += w * mu[e];
          r[i] += v * var[e];
        });
      }
      S *scale = t.scale + start, *shift = t.shift + start;
      r += start;
#pragma omp simd
      for (Index c = 0; c < t.channels; ++c) {
        r[c] = S(1) / std::sqrt(r[c] + S(eps));
        scale[c] = gamma ? r[c] * gamma[c] : r[c];
        shift[c] = beta ? beta[c] : S(0);
      }
    }
  });
}

template <typename S>
void update_running(S* running_mean, S* running_var, const S* mean, const S* var, double momentum,
                    double unbias, Index channels) {
  for (Index c = 0; c < channels; ++c) {
    running_mean[c] += S(momentum) * (mean[c] - running_mean[c]);
    running_var[c] += S(momentum) * (var[c] * S(unbias) - running_var[c]);
  }
}

// ---- backward ----------------------------------------------------------------------------------

// dL/dlogits of a softmax with weights w, from dL/dw.
template <typename S> void softmax_gradient(const double* inner, const S* w, Index count, S* out) {
  double mean = 0;
  for (Index k = 0; k < count; ++k) mean += w[k] * inner[k];
  for (Index k = 0; k < count; ++k) out[k] = S(w[k] * (inner[k] - mean));
}

// From backward's sums in g: the gradients of the combined mean (Eq. (8)) and variance (Eq. (7)) in
// g.mean and g.var, and those of gamma, beta and the logits, each if it is not null.
template <typename S>
void combine_parameter_gradients(const Tables<S>& t, const Tables<S>& g, const S* gamma, S* dgamma,
                                 S* dbeta, S* dmean_logits, S* dvar_logits) {
  // One product for each row; added up below in this order.
  std::vector<double> products(dmean_logits ? 2 * t.count * t.samples : 0);
  const S *mean = t.mean, *center = t.center, *scale = t.scale, *r = t.rstd;
  const S *sum = g.center, *product = g.scale;
  S *dmean = g.mean, *dvar = g.var;
  for_each_part(t, [=, &t, &products](const Part& rows, const Part&) {
    for (Index j = rows.row; j < rows.rows_end; ++j) {
#pragma omp simd
      for (Index c = 0; c < t.channels; ++c) {
        const Index i = j * t.channels + c;
        const S dscale = product[i] + (mean[i] - center[i]) * sum[i];
        dmean[i] = -scale[i] * sum[i];
        dvar[i] = S(-0.5) * dscale * (gamma ? gamma[c] : S(1)) * r[i] * r[i] * r[i];
      }
      for (Index k = 0; k < t.count && dmean_logits; ++k) {
        double* to = products.data() + 2 * (k * t.samples + j);
        to[0] = inner_product(t, t.sets[k], j, dmean, t.means[k]);
        to[1] = inner_product(t, t.sets[k], j, dvar, t.vars[k]);
      }
    }
  });
  for_each_part(t, [=, &t](const Part&, const Part& columns) {
    const Index first = columns.column, last = columns.columns_end;
    if (dgamma) std::fill(dgamma + first, dgamma + last, S(0));
    if (dbeta) std::fill(dbeta + first, dbeta + last, S(0));
    for (Index j = 0; j < t.samples; ++j) {
      const Index start = j * t.channels;
      if (dgamma)
#pragma omp simd
        for (Index c = first; c < last; ++c) {
          const Index i = start + c;
          dgamma[c] += (product[i] + (mean[i] - center[i]) * sum[i]) * r[i];
        }
      if (dbeta)
#pragma omp simd
        for (Index c = first; c < last; ++c) dbeta[c] += sum[start + c];
    }
  });
  if (!dmean_logits) return;
  double inner_mean[kMembers] = {}, inner_var[kMembers] = {};
  for (Index k = 0; k < t.count; ++k)
    for (Index j = 0; j < t.samples; ++j) {
      inner_mean[k] += products[2 * (k * t.samples + j)];
      inner_var[k] += products[2 * (k * t.samples + j) + 1];
    }
  softmax_gradient(inner_mean, t.mean_weights, t.count, dmean_logits);
  softmax_gradient(inner_var, t.var_weights, t.count, dvar_logits);
}

// Eq. (9) on the tables: the input gradient's b and c (see Backend.input_gradient). No gradient
// flows through BN's statistics if they are `stored`.
template <typename S>
void combine_input_gradient(const Tables<S>& t, const Tables<S>& g, bool stored) {
  const auto averages = [&t, &g](Index k, const Part& part) {
    const S *dmean = g.mean, *dvar = g.var;
    average(t, t.sets[k], part, g.means[k], [=](Index i, Index) { return dmean[i]; });
    average(t, t.sets[k], part, g.vars[k], [=](Index i, Index) { return dvar[i]; });
  };
  for_each_part(t, [&](const Part&, const Part& columns) {
    for (Index k = 0; k < t.count; ++k)
      if (t.members[k] == kBatch && !stored) averages(k, columns);
  });
  for_each_part(t, [&](const Part& rows, const Part&) {
    const S *mean = t.mean, per_pixel = S(1) / S(t.area);
    S *b = g.shift, *constant = g.rstd;
    const Index start = rows.row * t.channels, size = (rows.rows_end - rows.row) * t.channels;
    std::fill_n(b + start, size, S(0));
    std::fill_n(constant + start, size, S(0));
    for (Index k = 0; k < t.count; ++k) {
      if (t.members[k] == kBatch && stored) continue;
      if (t.members[k] == kLayer || t.members[k] == kGroup) averages(k, rows);
      const S w = t.mean_weights[k] * per_pixel, v = t.var_weights[k] * 2 * per_pixel;
      const S *dmean = g.means[k], *dvar = g.vars[k], *mu = t.means[k];
      for (Index j = rows.row; j < rows.rows_end; ++j)
        over_row(t, t.sets[k], j, [=](Index i, Index e) {
          b[i] += v * dvar[e];
          constant[i] += w * dmean[e] + v * dvar[e] * (mean[i] - mu[e]);
        });
    }
  });
}

}  // namespace
