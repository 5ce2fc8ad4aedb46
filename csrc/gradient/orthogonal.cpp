#include "orthogonal.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace nca {
namespace {

using Values = std::vector<float>;

// out (m, n) += a (m, k) b (k, n). Each output is a sum over k in ascending order, so that the innermost loop
// can be vectorized without a change of the order.
void add_product(float* out, const float* a, const float* b, std::size_t m, std::size_t k, std::size_t n) {
    for (std::size_t i = 0; i < m; ++i)
        for (std::size_t l = 0; l < k; ++l)
            for (std::size_t j = 0; j < n; ++j)
                out[i * n + j] += a[i * k + l] * b[l * n + j];
}

void transpose(float* out, const float* in, std::size_t rows, std::size_t columns) {
    for (std::size_t i = 0; i < rows; ++i)
        for (std::size_t j = 0; j < columns; ++j)
            out[j * rows + i] = in[i * columns + j];
}

} // namespace

void orthogonalize(float* matrix, std::size_t rows, std::size_t columns) {
    constexpr int steps = 5;
    constexpr double nothing = 1e-12;
    constexpr float linear = 3.4445F, cubic = -4.7750F, quintic = 2.0315F;
    const std::size_t size = rows * columns, m = std::min(rows, columns), n = std::max(rows, columns);
    double squares = 0; // in double: the square of a small gradient is below the smallest float
    for (std::size_t i = 0; i < size; ++i)
        squares += static_cast<double>(matrix[i]) * matrix[i];
    const double norm = std::sqrt(squares);
    if (norm < nothing) {
        std::fill_n(matrix, size, 0.0F);
        return;
    }
    Values x(size), turned(size), gram(m * m), inner(m * m), powers(m * m);
    for (std::size_t i = 0; i < size; ++i)
        turned[i] = static_cast<float>(matrix[i] / norm);
    // The smaller side first, so that products of x with itself are as small as can be
    if (rows > columns)
        transpose(x.data(), turned.data(), rows, columns);
    else
        x = turned;
    for (int step = 0; step < steps; ++step) {
        transpose(turned.data(), x.data(), m, n);
        std::fill(gram.begin(), gram.end(), 0.0F);
        add_product(gram.data(), x.data(), turned.data(), m, n, m);
        // x = linear x + (cubic g + quintic g g) x with g = x x'
        for (std::size_t i = 0; i < m * m; ++i)
            inner[i] = quintic * gram[i] + (i % (m + 1) == 0 ? cubic : 0.0F);
        std::fill(powers.begin(), powers.end(), 0.0F);
        add_product(powers.data(), inner.data(), gram.data(), m, m, m);
        for (std::size_t i = 0; i < size; ++i)
            turned[i] = linear * x[i];
        add_product(turned.data(), powers.data(), x.data(), m, m, n);
        x.swap(turned);
    }
    if (rows > columns)
        transpose(matrix, x.data(), columns, rows);
    else
        std::copy(x.begin(), x.end(), matrix);
}

} // namespace nca
