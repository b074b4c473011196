// Pooling of the [N, C] tables by a mixture of members, forward and backward, for CPUs.
//
// A mixture normalises with mean = sum_k w_k mean_k and var = sum_k w'_k var_k (Eq. (3)); its
// members are in, ln, bn, gn, any of them. Batch, instance, layer and group normalisation are
// mixtures of one. See mixture.py for the arguments and for the same in PyTorch operators.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

using Index = int64_t;
enum Member { kInstance, kLayer, kBatch, kGroup, kMembers };

// One call's sizes: rows = N samples, sample j of statistics group j % replicas.
struct Sizes {
  Index rows, replicas, channels, channel_groups;
};

// How far one table entry of a member reaches: its row and column in that member's own table.
struct Place {
  Index row, column_divisor;  // entry (row, c / column_divisor) of a table with `columns` columns
  Index columns;
};

inline Place place(int member, Index j, const Sizes& size) {
  switch (member) {
    case kLayer: return {j, size.channels, 1};
    case kBatch: return {j % size.replicas, 1, size.channels};
    case kGroup: return {j, size.channels / size.channel_groups, size.channel_groups};
    default: return {j, 1, size.channels};
  }
}

inline Index table_size(int member, const Sizes& size) {
  switch (member) {
    case kLayer: return size.rows;
    case kBatch: return size.replicas * size.channels;
    case kGroup: return size.rows * size.channel_groups;
    default: return 0;  // instance: the moments themselves
  }
}

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
template <typename S> void average(int member, const S* from, S* to, const Sizes& size) {
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
void with_member(int member, const S* from, const S* table, S* to, const Sizes& size, Body body) {
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
void member_statistics(int member, const S* mean, const S* var, S* member_mean, S* member_var,
                       std::vector<S>& scratch, const Sizes& size) {
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

template <typename S>
void mixture_forward(const S* mean, const S* var, const int* members, int count,
                     const S* mean_logits, const S* var_logits, const S* gamma, const S* beta,
                     const S* stored_mean, const S* stored_var, double eps, S* center, S* scale,
                     S* shift, S* rstd, S* weights, S* tables, Index rows, Index replicas,
                     Index channels, Index channel_groups) {
  const Sizes size{rows, replicas, channels, channel_groups};
  const Index all = rows * channels;
  S* mean_weights = weights;
  S* var_weights = weights + count;
  if (mean_logits) {
    softmax(mean_logits, count, mean_weights);
    softmax(var_logits, count, var_weights);
  } else {
    std::fill_n(weights, 2 * count, S(1));
  }
  std::fill_n(center, all, S(0));
  std::fill_n(rstd, all, S(0));
  std::vector<S> scratch(all);
  for (int k = 0; k < count; ++k) {
    const int member = members[k];
    const S* member_mean = mean;
    const S* member_var = var;
    if (member != kInstance) {
      const Index entries = table_size(member, size);
      S* own_mean = tables;
      S* own_var = tables + entries;
      if (member == kBatch && stored_mean) {
        for (Index r = 0; r < replicas; ++r) {
          std::copy_n(stored_mean, channels, own_mean + r * channels);
          std::copy_n(stored_var, channels, own_var + r * channels);
        }
      } else {
        member_statistics(member, mean, var, own_mean, own_var, scratch, size);
      }
      member_mean = own_mean;
      member_var = own_var;
      tables += 2 * entries;
    }
    for (Index j = 0; j < rows; ++j) {
      const Place p = place(member, j, size);
      add_member(p, mean_weights[k], member_mean, center + j * channels, channels);
      add_member(p, var_weights[k], member_var, rstd + j * channels, channels);
    }
  }
  for (Index j = 0; j < rows; ++j) {
    S* __restrict r = rstd + j * channels;
    S* __restrict a = scale + j * channels;
    S* __restrict b = shift + j * channels;
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
double inner_product(int member, const S* gradient, const S* table, const Sizes& size) {
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

// Eqs. (7)-(14) on the tables: from backward's sums to the input gradient's b and c (see
// Backend.input_gradient) and the gradients of gamma, beta and the logits.
template <typename S>
void mixture_backward(const S* sum_grad, const S* sum_product, const S* mean, const S* var,
                      const int* members, int count, int stored, const S* gamma, const S* center,
                      const S* scale, const S* rstd, const S* weights, const S* tables, S* b,
                      S* c_out, S* dgamma, S* dbeta, S* dmean_logits, S* dvar_logits, Index area,
                      Index rows, Index replicas, Index channels, Index channel_groups) {
  const Sizes size{rows, replicas, channels, channel_groups};
  const Index all = rows * channels;
  std::vector<S> buffer(4 * all);
  S* dmean = buffer.data();  // gradients of the pooled mean (Eq. (8)) and variance (Eq. (7))
  S* dvar = dmean + all;
  S* pooled_dmean = dvar + all;
  S* pooled_dvar = pooled_dmean + all;
  if (dgamma) std::fill_n(dgamma, channels, S(0));
  if (dbeta) std::fill_n(dbeta, channels, S(0));
  for (Index j = 0; j < rows; ++j) {
    const Index at = j * channels;
    for (Index c = 0; c < channels; ++c) {
      const Index i = at + c;
      const S dscale = sum_product[i] + (mean[i] - center[i]) * sum_grad[i];
      dmean[i] = -scale[i] * sum_grad[i];
      dvar[i] = S(-0.5) * dscale * (gamma ? gamma[c] : S(1)) * rstd[i] * rstd[i] * rstd[i];
      b[i] = c_out[i] = 0;
    }
    if (dgamma)
      for (Index c = 0; c < channels; ++c)
        dgamma[c] += (sum_product[at + c] + (mean[at + c] - center[at + c]) * sum_grad[at + c]) *
                     rstd[at + c];
    if (dbeta)
      for (Index c = 0; c < channels; ++c) dbeta[c] += sum_grad[at + c];
  }
  const S* mean_weights = weights;
  const S* var_weights = weights + count;
  std::vector<double> inner_mean(count), inner_var(count);
  const S per_pixel = S(1) / S(area);
  for (int k = 0; k < count; ++k) {
    const int member = members[k];
    const Index entries = table_size(member, size);
    const bool instance = member == kInstance;
    const S* member_mean = instance ? mean : tables;
    const S* member_var = instance ? var : tables + entries;
    if (!instance) tables += 2 * entries;
    if (dmean_logits) {
      inner_mean[k] = inner_product(member, dmean, member_mean, size);
      inner_var[k] = inner_product(member, dvar, member_var, size);
    }
    if (member == kBatch && stored) continue;
    const S wm = mean_weights[k] * per_pixel, wv = var_weights[k] * 2 * per_pixel;
    if (instance) {
      for (Index i = 0; i < all; ++i) {
        c_out[i] += wm * dmean[i];
        b[i] += wv * dvar[i];
      }
      continue;
    }
    average(member, dmean, pooled_dmean, size);
    average(member, dvar, pooled_dvar, size);
    for (Index j = 0; j < rows; ++j) {
      const S* __restrict mu = mean + j * channels;
      S* __restrict bj = b + j * channels;
      S* __restrict cj = c_out + j * channels;
      over_runs(place(member, j, size), channels, [=](Index first, Index last, Index e, bool own) {
        const S* __restrict gm = pooled_dmean + e;
        const S* __restrict gv = pooled_dvar + e;
        const S* __restrict m = member_mean + e;
        for (Index c = first; c < last; ++c) {
          const Index i = own ? c : 0;
          bj[c] += wv * gv[i];
          cj[c] += wm * gm[i] + wv * gv[i] * (mu[c] - m[i]);
        }
      });
    }
  }
  if (dmean_logits) {
    softmax_gradient(inner_mean.data(), mean_weights, count, dmean_logits);
    softmax_gradient(inner_var.data(), var_weights, count, dvar_logits);
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

#define POOLING(suffix, S)                                                                         \
  extern "C" void mixture_forward_##suffix(                                                        \
      const S* mean, const S* var, const int* members, int count, const S* mean_logits,            \
      const S* var_logits, const S* gamma, const S* beta, const S* stored_mean,                    \
      const S* stored_var, double eps, S* center, S* scale, S* shift, S* rstd, S* weights,         \
      S* tables, Index rows, Index replicas, Index channels, Index channel_groups) {               \
    mixture_forward(mean, var, members, count, mean_logits, var_logits, gamma, beta, stored_mean,  \
                    stored_var, eps, center, scale, shift, rstd, weights, tables, rows, replicas,  \
                    channels, channel_groups);                                                     \
  }                                                                                                \
  extern "C" void mixture_backward_##suffix(                                                       \
      const S* sum_grad, const S* sum_product, const S* mean, const S* var, const int* members,    \
      int count, int stored, const S* gamma, const S* center, const S* scale, const S* rstd,       \
      const S* weights, const S* tables, S* b, S* c, S* dgamma, S* dbeta, S* dmean_logits,         \
      S* dvar_logits, Index area, Index rows, Index replicas, Index channels,                      \
      Index channel_groups) {                                                                      \
    mixture_backward(sum_grad, sum_product, mean, var, members, count, stored, gamma, center,      \
                     scale, rstd, weights, tables, b, c, dgamma, dbeta, dmean_logits, dvar_logits, \
                     area, rows, replicas, channels, channel_groups);                              \
  }                                                                                                \
  extern "C" void update_running_##suffix(S* running_mean, S* running_var, const S* mean,          \
                                          const S* var, double momentum, double unbias,            \
                                          Index channels) {                                        \
    update_running(running_mean, running_var, mean, var, momentum, unbias, channels);              \
  }

POOLING(float32, float)
POOLING(float64, double)
