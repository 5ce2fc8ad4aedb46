#include "orthogonal.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "../dispatch.hpp"

namespace nca {
namespace {

using Values = std::vector<float>;

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
    const auto product = [&kernels = active_kernels()](const Values& a, const Values& b, std::size_t m,
                                                       std::size_t k, std::size_t n, Values& out) {
        kernels.multiply(a.data(), b.data(), static_cast<int>(m), static_cast<int>(k), static_cast<int>(n),
                         out.data());
    };
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
        product(x, turned, m, n, m, gram);
        // x = linear x + (cubic g + quintic g g) x with g = x x'
        for (std::size_t i = 0; i < m * m; ++i)
            inner[i] = quintic * gram[i];
        for (std::size_t i = 0; i < m; ++i)
            inner[i * (m + 1)] += cubic;
        std::fill(powers.begin(), powers.end(), 0.0F);
        product(inner, gram, m, m, m, powers);
        for (std::size_t i = 0; i < size; ++i)
            turned[i] = linear * x[i];
        product(powers, x, m, m, n, turned);
        x.swap(turned);
    }
    if (rows > columns)
        transpose(matrix, x.data(), columns, rows);
    else
        std::copy(x.begin(), x.end(), matrix);
}

} // namespace nca
