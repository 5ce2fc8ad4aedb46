// The direction of a matrix without its singular values, for steps of Muon.
#pragma once

#include <cstddef>

#include "../interrupt.hpp"

namespace nca {

// Brings the singular values of a matrix (rows, columns) near one, in place, and leaves its singular vectors:
// five steps of the Newton-Schulz iteration with the coefficients of Jordan et al. (2024), after which those
// above a five-hundredth of the Frobenius norm are 0.68 to 1.21; smaller ones grow by up to 485. A matrix
// whose norm is below 1e-12 becomes zeros: what rounding leaves of a momentum that has died out is no
// direction. Every number must be finite. Sums have one order, so that the result is the same bits wherever
// it is computed. At most 2^31 - 1 numbers. Returns false, and leaves anything, where it was interrupted.
bool orthogonalize(float* matrix, std::size_t rows, std::size_t columns, const Interrupt& interrupt = {});

} // namespace nca
