// Pooling of the [N, C] tables by a mixture of members, forward and backward, for CPUs.
//
// A mixture normalises with mean = sum_k w_k mean_k and var = sum_k w'_k var_k (Eq. (3)); its
// members are in, ln, bn, gn, any of them. Batch, instance, layer and group normalisation are
// mixtures of one. Forward and backward are two steps each, in between which ranks that share BN's
// statistics exchange theirs. Every function takes where the tables lie, and the buffer they lie in.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

using Index = int64_t;
enum Member { kInstance, kLayer, kBatch, kGroup, kMembers };

// As Layout of closed_form.py numbers it: rows = N samples, sample j of statistics group
// j % replicas; which members there are, and where in the buffer the weights and theirs begin.
struct Layout {
  Index rows, replicas, channels, channel_groups, area, count, weights;
  Index members[kMembers], at[kMembers];
};

// How far one table entry of a member reaches: its row and column in that member's own table.
struct Place {
  Index row, column_divisor;  // entry (row, c / column_divisor) of a table with `columns` columns
  Index columns;
};

inline Place place(Index member, Index j, const Layout& size) {
  switch (member) {
    case kLayer: return {j, size.channels, 1};
    case kBatch: return {j % size.replicas, 1, size.channels};
    case kGroup: return {j, size.channels / size.channel_groups, size.channel_groups};
    default: return {j, 1, size.channels};
  }
}

inline Index table_size(Index member, const Layout& size) {
  switch (member) {
    case kLayer: return size.rows;
    case kBatch: return size.replicas * size.channels;
    case kGroup: return size.rows * size.channel_groups;
    default: return 0;  // instance: the moments themselves
  }
}

// The tables in a buffer of that layout.
template <typename S> struct Tables {
  const Layout& size;
  S* buffer;
  S *mean, *var, *center, *scale, *shift, *rstd, *weights;

  Tables(const Layout& layout, S* start) : size(layout), buffer(start) {
    const Index table = size.rows * size.channels;
    mean = start, var = mean + table, center = var + table, scale = center + table;
    shift = scale + table, rstd = shift + table, weights = start + size.weights;
  }
  // The k-th member's: instance's are the moments themselves.
  S* mean_of(Index k) const {
    return size.members[k] == kInstance ? mean : buffer + size.at[k];
  }
  S* var_of(Index k) const {
    const Index member = size.members[k];
    return member == kInstance ? var : buffer + size.at[k] + table_size(member, size);
  }
};

// Calls body(first, last, entry) for each run of columns that shares one entry, or, where every
// column has its own, once with entry = the first's. `own` says which.
template <typename Body> inline void over_runs(const Place& p, Index channels, Body body) {
  if (p.column_divisor == 1) {
    body(Index(0), channels, p.row * p.columns, true);
  } else {
    for (Index g = 0; g < p.columns; ++g)
      body(g * p.column_divisor, (g + 1) * p.column_divisor, p.row * p.columns + g, false);
  }
}

// to[entry] = average over a member's set of from[j, c].
template <typename S> void average(Index member, const S* from, S* to, const Layout& size) {
  const Index channels = size.channels, size_to = table_size(member, size);
  std::fill_n(to, size_to, S(0));
  for (Index j = 0; j < size.rows; ++j) {
    const S* __restrict row = from + j * channels;
    over_runs(place(member, j, size), channels, [=](Index first, Index last, Index e, bool own) {
      if (own) {
        S* __restrict out = to + e;
        for (Index c = first; c < last; ++c) out[c] += row[c];
      } else {
        S total = 0;
#pragma omp simd reduction(+ : total)
        for (Index c = first; c < last; ++c) total += row[c];
        to[e] += total;
      }
    });
  }
  const S inverse = S(size_to) / S(size.rows * channels);
  for (Index e = 0; e < size_to; ++e) to[e] *= inverse;
}

// to[j, c] = body(from[j, c], table[entry of (j, c)]).
template <typename S, typename Body>
void with_member(Index member, const S* from, const S* table, S* to, const Layout& size, Body body) {
  for (Index j = 0; j < size.rows; ++j) {
    const S* __restrict in = from + j * size.channels;
    S* __restrict out = to + j * size.channels;
    over_runs(place(member, j, size), size.channels,
              [=](Index first, Index last, Index e, bool own) {
                const S* __restrict entry = table + e;
                if (own) {
                  for (Index c = first; c < last; ++c) out[c] = body(in[c], entry[c]);
                } else {
                  for (Index c = first; c < last; ++c) out[c] = body(in[c], entry[0]);
                }
              });
  }
}

// The member's mean and variance by the law of total variance (Eq. (5)). The mean is refined once
// by the average of what remains: fp32 sums of large means lose digits that the variance needs.
template <typename S>
void member_statistics(Index member, const S* mean, const S* var, S* member_mean, S* member_var,
                       std::vector<S>& scratch, const Layout& size) {
  const Index entries = table_size(member, size);
  S* rest = scratch.data();
  average(member, mean, member_mean, size);
  with_member(member, mean, member_mean, rest, size, [](S m, S mu) { return m - mu; });
  average(member, rest, member_var, size);
  for (Index e = 0; e < entries; ++e) member_mean[e] += member_var[e];
  with_member(member, mean, member_mean, rest, size, [](S m, S mu) { return (m - mu) * (m - mu); });
  for (Index i = 0; i < size.rows * size.channels; ++i) rest[i] += var[i];
  average(member, rest, member_var, size);
}

// to[j, c] += weight * table[entry of (j, c)].
template <typename S>
inline void add_member(const Place& p, S weight, const S* table, S* to, Index channels) {
  over_runs(p, channels, [=](Index first, Index last, Index e, bool own) {
    S* __restrict out = to;
    const S* __restrict in = table + e;
    if (own) {
      for (Index c = first; c < last; ++c) out[c] += weight * in[c];
    } else {
      for (Index c = first; c < last; ++c) out[c] += weight * in[0];
    }
  });
}

template <typename S> void softmax(const S* logits, int count, S* weights) {
  double top = logits[0], total = 0;
  for (int k = 1; k < count; ++k) top = std::max(top, double(logits[k]));
  std::vector<double> powers(count);
  for (int k = 0; k < count; ++k) total += powers[k] = std::exp(double(logits[k]) - top);
  for (int k = 0; k < count; ++k) weights[k] = S(powers[k] / total);
}

// Each pooled member's mean and variance; BN's are the stored ones where they are given.
template <typename S>
void mixture_statistics(const Layout& size, S* buffer, const S* stored_mean, const S* stored_var) {
  const Tables<S> tables(size, buffer);
  std::vector<S> scratch(size.rows * size.channels);
  for (Index k = 0; k < size.count; ++k) {
    const Index member = size.members[k];
    S *own_mean = tables.mean_of(k), *own_var = tables.var_of(k);
    if (member == kBatch && stored_mean) {
      for (Index r = 0; r < size.replicas; ++r) {
        std::copy_n(stored_mean, size.channels, own_mean + r * size.channels);
        std::copy_n(stored_var, size.channels, own_var + r * size.channels);
      }
    } else if (member != kInstance) {
      member_statistics(member, tables.mean, tables.var, own_mean, own_var, scratch, size);
    }
  }
}

// Eq. (3) and the affine map's tables.
template <typename S>
void mixture_coefficients(const Layout& size, S* buffer, const S* mean_logits, const S* var_logits,
                          const S* gamma, const S* beta, double eps) {
  const Tables<S> tables(size, buffer);
  const Index channels = size.channels, all = size.rows * channels;
  const int count = int(size.count);
  S* mean_weights = tables.weights;
  S* var_weights = tables.weights + count;
  if (mean_logits) {
    softmax(mean_logits, count, mean_weights);
    softmax(var_logits, count, var_weights);
  } else {
    std::fill_n(mean_weights, 2 * count, S(1));
  }
  std::fill_n(tables.center, all, S(0));
  std::fill_n(tables.rstd, all, S(0));
  for (int k = 0; k < count; ++k) {
    const S *member_mean = tables.mean_of(k), *member_var = tables.var_of(k);
    for (Index j = 0; j < size.rows; ++j) {
      const Place p = place(size.members[k], j, size);
      add_member(p, mean_weights[k], member_mean, tables.center + j * channels, channels);
      add_member(p, var_weights[k], member_var, tables.rstd + j * channels, channels);
    }
  }
  for (Index j = 0; j < size.rows; ++j) {
    S* __restrict r = tables.rstd + j * channels;
    S* __restrict a = tables.scale + j * channels;
    S* __restrict b = tables.shift + j * channels;
    for (Index c = 0; c < channels; ++c) {
      r[c] = S(1) / std::sqrt(r[c] + S(eps));
      a[c] = gamma ? r[c] * gamma[c] : r[c];
      b[c] = beta ? beta[c] : S(0);
    }
  }
}

// dL/dlogits of a softmax with weights w, from dL/dw.
template <typename S> void softmax_gradient(const double* inner, const S* w, int count, S* out) {
  double mean = 0;
  for (int k = 0; k < count; ++k) mean += w[k] * inner[k];
  for (int k = 0; k < count; ++k) out[k] = S(w[k] * (inner[k] - mean));
}

// Sum over (j, c) of gradient[j, c] * table[entry of (j, c)].
template <typename S>
double inner_product(Index member, const S* gradient, const S* table, const Layout& size) {
  double total = 0;
  for (Index j = 0; j < size.rows; ++j) {
    const S* __restrict g = gradient + j * size.channels;
    over_runs(place(member, j, size), size.channels,
              [&](Index first, Index last, Index e, bool own) {
                const S* __restrict in = table + e;
                double part = 0;
#pragma omp simd reduction(+ : part)
                for (Index c = first; c < last; ++c) part += double(g[c]) * in[own ? c : 0];
                total += part;
              });
  }
  return total;
}

// From backward's sums [2, N, C] the gradients [2, N, C] of the pooled mean (Eq. (8)) and variance
// (Eq. (7)), their averages over BN's sets (`batch` [2, R, C]), and the gradients of gamma, beta and
// the logits.
template <typename S>
void mixture_gradient_sums(const Layout& size, S* buffer, const S* sums, const S* gamma,
                           S* gradients, S* batch, S* dgamma, S* dbeta, S* dmean_logits,
                           S* dvar_logits) {
  const Tables<S> tables(size, buffer);
  const S *mean = tables.mean, *center = tables.center, *scale = tables.scale, *rstd = tables.rstd;
  const Index channels = size.channels, all = size.rows * channels;
  const int count = int(size.count);
  const S *sum_grad = sums, *sum_product = sums + all;
  S *dmean = gradients, *dvar = gradients + all;
  if (dgamma) std::fill_n(dgamma, channels, S(0));
  if (dbeta) std::fill_n(dbeta, channels, S(0));
  for (Index j = 0; j < size.rows; ++j) {
    // So many arrays that the compiler would not ask whether they overlap.
    const Index at = j * channels;
    const S* __restrict g = sum_grad + at;
    const S* __restrict product = sum_product + at;
    const S* __restrict mu = mean + at;
    const S* __restrict middle = center + at;
    const S* __restrict a = scale + at;
    const S* __restrict r = rstd + at;
    S* __restrict of_mean = dmean + at;
    S* __restrict of_var = dvar + at;
#pragma omp simd
    for (Index c = 0; c < channels; ++c) {
      const S dscale = product[c] + (mu[c] - middle[c]) * g[c];
      of_mean[c] = -a[c] * g[c];
      of_var[c] = S(-0.5) * dscale * (gamma ? gamma[c] : S(1)) * r[c] * r[c] * r[c];
    }
    if (S* __restrict to = dgamma)
      for (Index c = 0; c < channels; ++c)
        to[c] += (product[c] + (mu[c] - middle[c]) * g[c]) * r[c];
    if (S* __restrict to = dbeta)
      for (Index c = 0; c < channels; ++c) to[c] += g[c];
  }
  std::vector<double> inner_mean(count), inner_var(count);
  for (int k = 0; k < count; ++k) {
    const Index member = size.members[k];
    if (dmean_logits) {
      inner_mean[k] = inner_product(member, dmean, tables.mean_of(k), size);
      inner_var[k] = inner_product(member, dvar, tables.var_of(k), size);
    }
    if (member == kBatch) {
      average(kBatch, dmean, batch, size);
      average(kBatch, dvar, batch + table_size(kBatch, size), size);
    }
  }
  if (dmean_logits) {
    softmax_gradient(inner_mean.data(), tables.weights, count, dmean_logits);
    softmax_gradient(inner_var.data(), tables.weights + count, count, dvar_logits);
  }
}

// Eq. (9) on the tables: the input gradient's b and c (see Backend.input_gradient). Without `batch`
// BN's statistics are stored ones, through which nothing flows.
template <typename S>
void mixture_gradient(const Layout& size, S* buffer, const S* gradients, const S* batch, S* b,
                      S* c_out) {
  const Tables<S> tables(size, buffer);
  const Index channels = size.channels, all = size.rows * channels;
  const S *dmean = gradients, *dvar = gradients + all;
  std::vector<S> scratch(2 * all);
  const S per_pixel = S(1) / S(size.area);
  std::fill_n(b, all, S(0));
  std::fill_n(c_out, all, S(0));
  for (Index k = 0; k < size.count; ++k) {
    const Index member = size.members[k];
    const Index entries = table_size(member, size);
    if (member == kBatch && !batch) continue;
    const S wm = tables.weights[k] * per_pixel;
    const S wv = tables.weights[size.count + k] * 2 * per_pixel;
    if (member == kInstance) {
      for (Index i = 0; i < all; ++i) {
        c_out[i] += wm * dmean[i];
        b[i] += wv * dvar[i];
      }
      continue;
    }
    const S* member_mean = tables.mean_of(k);
    const S* pooled = batch;
    if (member != kBatch) {
      average(member, dmean, scratch.data(), size);
      average(member, dvar, scratch.data() + entries, size);
      pooled = scratch.data();
    }
    for (Index j = 0; j < size.rows; ++j) {
      const S* __restrict mu = tables.mean + j * channels;
      S* __restrict bj = b + j * channels;
      S* __restrict cj = c_out + j * channels;
      over_runs(place(member, j, size), channels, [=](Index first, Index last, Index e, bool own) {
        const S* __restrict gm = pooled + e;
        const S* __restrict gv = pooled + entries + e;
        const S* __restrict m = member_mean + e;
        for (Index c = first; c < last; ++c) {
          const Index i = own ? c : 0;
          bj[c] += wv * gv[i];
          cj[c] += wm * gm[i] + wv * gv[i] * (mu[c] - m[i]);
        }
      });
    }
  }
}

template <typename S>
void update_running(S* running_mean, S* running_var, const S* mean, const S* var, double momentum,
                    double unbias, Index channels) {
  for (Index c = 0; c < channels; ++c) {
    running_mean[c] += S(momentum) * (mean[c] - running_mean[c]);
    running_var[c] += S(momentum) * (var[c] * S(unbias) - running_var[c]);
  }
}

}  // namespace

// ---- what cpp.py calls: each function above, for either type of table --------------------------

#define POOLING(suffix, S)                                                                         \
  extern "C" void mixture_statistics_##suffix(const Layout* layout, S* buffer, const S* mean,      \
                                              const S* var) {                                      \
    mixture_statistics(*layout, buffer, mean, var);                                                \
  }                                                                                                \
  extern "C" void mixture_coefficients_##suffix(const Layout* layout, S* buffer,                   \
                                                const S* mean_logits, const S* var_logits,         \
                                                const S* gamma, const S* beta, double eps) {       \
    mixture_coefficients(*layout, buffer, mean_logits, var_logits, gamma, beta, eps);              \
  }                                                                                                \
  extern "C" void mixture_gradient_sums_##suffix(                                                  \
      const Layout* layout, S* buffer, const S* sums, const S* gamma, S* gradients, S* batch,      \
      S* dgamma, S* dbeta, S* dmean_logits, S* dvar_logits) {                                      \
    mixture_gradient_sums(*layout, buffer, sums, gamma, gradients, batch, dgamma, dbeta,           \
                          dmean_logits, dvar_logits);                                              \
  }                                                                                                \
  extern "C" void mixture_gradient_##suffix(const Layout* layout, S* buffer, const S* gradients,   \
                                            const S* batch, S* b, S* c) {                          \
    mixture_gradient(*layout, buffer, gradients, batch, b, c);                                     \
  }                                                                                                \
  extern "C" void update_running_##suffix(S* running_mean, S* running_var, const S* mean,          \
                                          const S* var, double momentum, double unbias,            \
                                          Index channels) {                                        \
    update_running(running_mean, running_var, mean, var, momentum, unbias, channels);              \
  }

POOLING(float32, float)
POOLING(float64, double)
