/** In which order a stack is fetched: what is looked at, then its neighbours, further and further away. */

export function fetchOrder(count: number, around: number): number[] {
  const order: number[] = [];
  for (let distance = 0; order.length < count; distance += 1) {
    if (around + distance < count) order.push(around + distance);
    if (distance > 0 && around - distance >= 0) order.push(around - distance);
  }
  return order;
}
